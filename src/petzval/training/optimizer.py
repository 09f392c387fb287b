"""Learning rates and parameter updates: AdamW, and Muon for hidden matrices (`muon.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from petzval.errors import ConfigError
from petzval.training.muon import Muon, Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Settings of the update.

    Attributes:
        kind: "adamw" for all parameters, or "muon" for hidden matrices with AdamW for the rest.
        learning_rate: peak; the same number for both kinds.
        betas: AdamW momentum decays.
        weight_decay: decoupled, on parameters of two and more dimensions only.
        momentum: Muon's.
        newton_schulz: type of Muon's matrix products; float32 is for comparisons.
        max_grad_norm: gradients are scaled down to this global norm.
        warmup_steps: linear from zero.
        decay: shape of the learning rate after the warm-up.
        cooldown: share of the run in which "cooldown" falls linearly; ignored by the others.
        final_fraction: learning rate at the end, as a share of the peak.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    momentum: float = 0.95
    newton_schulz: Precision = "bfloat16"
    max_grad_norm: float = 1.0
    warmup_steps: int = 100
    decay: Literal["constant", "cosine", "cooldown"] = "constant"
    cooldown: float = 0.3
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.final_fraction <= 1:
            raise ConfigError(f"final_fraction must be in [0, 1], got {self.final_fraction}")
        if not 0 < self.cooldown <= 1:
            raise ConfigError(f"cooldown must be in (0, 1], got {self.cooldown}")


def learning_rate_factor(config: OptimizerConfig, step: int, progress: float) -> float:
    """Share of the peak learning rate for the update that follows `step` finished ones.

    Args:
        config: names the shape.
        step: finished updates, for the warm-up.
        progress: share of the run that is done, clamped to [0, 1].
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps > 0 else 1.0
    progress = min(1.0, max(0.0, progress))
    if config.decay == "constant":
        shape = 1.0
    elif config.decay == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        shape = min(1.0, (1 - progress) / config.cooldown)
    return warmup * (config.final_fraction + (1 - config.final_fraction) * shape)


# Matrices that are not hidden layers: look-up tables, first and last projections, and the maps from
# the timestep. Muon's equal treatment of all directions does them no good.
_NOT_HIDDEN = (
    "embed",
    "img_in",
    "txt_in",
    "proj_out",
    "norm_out",
    "_mod.",
    "router",
    "lm_head",
    "encoder.conv_in",
    "decoder.conv_out",
    "bn.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroups:
    """Names of parameters by the way they are updated."""

    muon: tuple[str, ...]
    decayed: tuple[str, ...]
    plain: tuple[str, ...]


def group_parameters(model: nn.Module, kind: Literal["adamw", "muon"]) -> ParameterGroups:
    """Sort trainable parameters: Muon matrices, AdamW with decay, AdamW without (1-D)."""
    muon: list[str] = []
    decayed: list[str] = []
    plain: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # A bias of stacked experts has two dimensions but is a vector per expert.
        if parameter.ndim < 2 or name.endswith("bias"):
            plain.append(name)
        elif (
            kind == "muon"
            and parameter.ndim in (2, 3, 4)
            and not any(word in name for word in _NOT_HIDDEN)
        ):
            muon.append(name)
        else:
            decayed.append(name)
    return ParameterGroups(muon=tuple(muon), decayed=tuple(decayed), plain=tuple(plain))


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW over all parameters, or Muon over the hidden matrices and AdamW over the rest."""
    groups = group_parameters(model, config.kind)
    parameters = dict(model.named_parameters())
    adamw_groups: list[dict[str, Any]] = [
        {"params": [parameters[n] for n in groups.decayed], "weight_decay": config.weight_decay},
        {"params": [parameters[n] for n in groups.plain], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in adamw_groups if group["params"]],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
    ]
    if groups.muon:
        optimizers.append(
            Muon(
                [parameters[n] for n in groups.muon],
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                precision=config.newton_schulz,
            )
        )
    return optimizers


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], value: float) -> None:
    """Give every group of every optimizer this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value
