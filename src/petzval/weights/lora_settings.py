"""What stands beside a LoRA's tensors and decides its scale: PEFT's settings, in either place.

PEFT writes `adapter_config.json` beside `adapter_model.safetensors`; diffusers writes the same
settings into the file's header, under `lora_adapter_metadata`, behind the name of the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from petzval.config import parse_json, read_json
from petzval.errors import CheckpointError, ConfigError
from petzval.weights.header import read_metadata

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's two files."""

METADATA_KEY = "lora_adapter_metadata"
_NETWORK = "transformer."
_NAME = re.compile(r"\^?[\w.]+\$?")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """The part of PEFT's settings that decides numbers.

    Attributes:
        alpha: of every layer; None means the rank, so a scale of 1.
        alpha_pattern: layers, or ends of their names, with another alpha.
        use_rslora: divide by the square root of the rank, not by the rank.
        config_file: the file they were read from, where that is not the LoRA's own.
    """

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    use_rslora: bool = False
    config_file: Path | None = None

    def scale(self, layer: str, rank: int) -> float:
        """What a layer's product is multiplied by."""
        alpha = self.alpha
        for name, value in self.alpha_pattern.items():
            plain = name.removesuffix("$").removeprefix("^")
            if layer == plain or (name[0] != "^" and layer.endswith(f".{plain}")):
                alpha = value
                break
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_settings(file: Path) -> LoraSettings:
    """The settings of a LoRA file: from its header, else from PEFT's file beside it.

    Raises:
        CheckpointError, ConfigError: damaged, or an adapter that is not a plain LoRA.
    """
    metadata = read_metadata(file)
    if METADATA_KEY in metadata:
        place = f"{file}: {METADATA_KEY}"
        values = parse_json(metadata[METADATA_KEY], where=place)
        if isinstance(values, dict):
            named = cast("dict[str, Any]", values)
            values = {name.removeprefix(_NETWORK): value for name, value in named.items()}
        return _settings(values, place, None)
    beside = file.with_name(ADAPTER_CONFIG)
    if file.name == ADAPTER_FILE and beside.exists():
        return _settings(read_json(beside), str(beside), beside)
    return LoraSettings()


def peft_config(
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    layers: Iterable[str],
    base: str | None = None,
) -> dict[str, Any]:
    """The content of `adapter_config.json` for a LoRA whose layers share rank and alpha.

    Args:
        layers: full names of the layers that have one.
        base: name of the model it was trained on.
    """
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def network_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings as diffusers keeps them in a header, behind the network's name."""
    return {f"{_NETWORK}{name}": value for name, value in config.items()}


def _settings(values: Any, place: str, config_file: Path | None) -> LoraSettings:
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: expected an object with settings")
    named = cast("dict[str, Any]", values)
    fixed = {"peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False}
    for name, wanted in fixed.items():
        if named.get(name) not in (None, wanted):
            raise CheckpointError(
                f"{place}: {name} is {str(named[name])[:40]!r}; only {wanted!r} is read",
                "save it as a plain LoRA with the program that trained it",
            )
    pattern: Any = named.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise ConfigError(f"{place}: alpha_pattern is not an object")
    alphas = cast("dict[str, Any]", pattern)
    for name in alphas:
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{place}: alpha_pattern {name[:80]!r} is an expression; only names are read"
            )
    alpha: Any = named.get("lora_alpha")
    return LoraSettings(
        alpha=None if alpha is None else _number(alpha, f"{place}: lora_alpha"),
        alpha_pattern={
            name: _number(value, f"{place}: alpha_pattern {name!r}")
            for name, value in alphas.items()
        },
        use_rslora=named.get("use_rslora") is True,
        config_file=config_file,
    )


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{place} must be a number, got {str(value)[:40]!r}")
    if not abs(value) <= 1e9:
        raise ConfigError(f"{place} is out of range")
    return float(value)
