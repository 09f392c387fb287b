"""YaRN rotary frequencies of GPT-OSS (long-context interpolation by parts)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from petzval.config import check_ranges, from_mapping, setting
from petzval.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnConfig:
    """The published values are the defaults: a config without rope entries means exactly these."""

    theta: float = setting(150000.0, minimum=1.000001)
    factor: float = setting(32.0, minimum=1.0)
    beta_fast: float = setting(32.0, minimum=1e-6)
    beta_slow: float = setting(1.0, minimum=1e-6)
    original_length: int = setting(4096, minimum=1)
    truncate: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, where="text encoder: rope_parameters")

    @property
    def attention_factor(self) -> float:
        """cos and sin are multiplied by 0.1 ln(factor) + 1."""
        return 0.1 * math.log(self.factor) + 1.0


def yarn_from_json(config: Mapping[str, Any]) -> YarnConfig:
    """Read `rope_parameters` (transformers 5), `rope_scaling` + `rope_theta` (4), or nothing.

    A config that names another rotary type is refused: falling back to plain RoPE is silently
    wrong (cosine 0.94 to the true features).

    Raises:
        ConfigError: the entry is no object, names another rotary type, or holds a wrong value.
    """
    entry: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(entry, dict):
        raise ConfigError("text encoder: rope_parameters must be an object")
    kind = entry.get("rope_type", entry.get("type", "yarn"))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if kind != "yarn":
        raise ConfigError(
            f"text encoder: rope_type {kind!r} is not YaRN",
            "GPT-OSS features need rope_type 'yarn'; take the encoder's published config.json",
        )
    values: dict[str, Any] = dict(entry)  # pyright: ignore[reportUnknownArgumentType]
    renamed = {"theta": "rope_theta", "original_length": "original_max_position_embeddings"}
    given = {
        field.name: values.get(renamed.get(field.name, field.name)) for field in fields(YarnConfig)
    }
    given["theta"] = given["theta"] or config.get("rope_theta")
    given["original_length"] = given["original_length"] or config.get("initial_context_length")
    present = {name: value for name, value in given.items() if value is not None}
    return from_mapping(YarnConfig, present, where="text encoder: rope_parameters")


def inverse_frequencies(config: YarnConfig, head_dim: int) -> Tensor:
    """float32 [head_dim / 2]: interpolated below the ramp, original above it."""

    def correction(rotations: float) -> float:
        span = math.log(config.original_length / (rotations * 2 * math.pi))
        return head_dim * span / (2 * math.log(config.theta))

    low, high = correction(config.beta_fast), correction(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32)
    frequency = config.theta ** (steps / head_dim)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return ramp / (config.factor * frequency) + (1 - ramp) / frequency


def yarn_tables(
    config: YarnConfig, head_dim: int, start: int, length: int
) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [length, head_dim / 2], for positions start … start + length - 1."""
    positions = torch.arange(start, start + length, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(config, head_dim))
    return angles.cos() * config.attention_factor, angles.sin() * config.attention_factor
