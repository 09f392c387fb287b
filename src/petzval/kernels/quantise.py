"""Weights in 8 and 4 bits: how they are encoded, and what they decode to.

Weight-only: a product is computed in the type of its input, from weights that are decoded for it.
What is gained is memory, and on a device that waits for memory, time.

int8     round to nearest, one scale a row (symmetric)
float8   e4m3, one scale a row that brings the row's largest value to 448
int4     16 levels between the least and the largest value of 64 neighbours (affine), two a byte
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

WeightFormat: TypeAlias = Literal["float8", "int8", "int4"]

GROUP = 64
"""Neighbours along a row that share a scale and a least value in int4."""

_INT8_MAX, _FLOAT8_MAX, _INT4_MAX = 127.0, 448.0, 15.0
_TINY = torch.finfo(torch.float32).tiny


def encode_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[outputs, inputs] → int8 codes of that shape, float32 scales [outputs, 1]."""
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / _INT8_MAX).clamp_min(_TINY)
    return (weight.float() / scale).round().to(torch.int8), scale


def encode_float8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[outputs, inputs] → float8 e4m3 codes of that shape, float32 scales [outputs, 1]."""
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / _FLOAT8_MAX).clamp_min(_TINY)
    return (weight.float() / scale).to(torch.float8_e4m3fn), scale


def decode_rows(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 or float8 codes and their scales → weights."""
    return codes.to(dtype) * scale.to(dtype)


def encode_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[outputs, inputs] → uint8 [outputs, inputs / 2], scales and least values in bfloat16.

    Scales and least values are [outputs, inputs / 64, 1]; codes are rounded against them as they
    are stored. The even input is the low half of its byte.

    Raises:
        ValueError: the number of inputs is not a multiple of 64.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"int4 needs inputs in groups of {GROUP}, got {weight.shape[1]}")
    groups: Tensor = weight.float().unflatten(1, (-1, GROUP))
    least = groups.amin(dim=2, keepdim=True)
    step = ((groups.amax(dim=2, keepdim=True) - least) / _INT4_MAX).clamp_min(1e-30)
    scale, least = step.bfloat16(), least.bfloat16()
    levels = ((groups - least.float()) / scale.float()).round().clamp(0, _INT4_MAX)
    pairs: Tensor = levels.to(torch.uint8).flatten(1).unflatten(1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4), scale, least


def decode_int4(codes: Tensor, scale: Tensor, least: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `encode_int4`, up to half a level."""
    levels = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
    groups: Tensor = levels.to(dtype).unflatten(1, (-1, GROUP))
    return torch.addcmul(least.to(dtype), groups, scale.to(dtype)).flatten(1)
