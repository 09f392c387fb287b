"""Rotary position tables of the denoiser: axial, centred on the picture, text placed after it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

MAX_POSITION = 4096
"""Lens' tables have 4096 rows; positions beyond were never seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeTables:
    """cos and sin, float32 [image tokens + text tokens, 32], image rows first.

    Plain float32 values outside any module: a dtype cast of the model cannot round them.
    """

    cos: Tensor
    sin: Tensor
    num_image_tokens: int

    def to(self, device: torch.device | str) -> RopeTables:
        """The same tables on another device."""
        return RopeTables(
            cos=self.cos.to(device),
            sin=self.sin.to(device),
            num_image_tokens=self.num_image_tokens,
        )


def _axis_angles(positions: Tensor, axis_dim: int, theta: float) -> Tensor:
    """Angles [positions, axis_dim / 2] = position / theta^(2j / axis_dim), in float32."""
    exponents = torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim
    return torch.outer(positions.float(), 1.0 / torch.pow(theta, exponents))


def _centred(length: int) -> Tensor:
    """-ceil(length / 2) … floor(length / 2) - 1."""
    return torch.arange(length) - (length - length // 2)


@lru_cache(maxsize=64)
def _cpu_tables(
    grid: tuple[int, int], num_text_tokens: int, axes: tuple[int, ...], theta: float
) -> RopeTables:
    height, width = grid
    text_start = max(height // 2, width // 2)
    last = max(text_start + num_text_tokens, (height + 1) // 2, (width + 1) // 2)
    if last > MAX_POSITION:
        raise ValueError(f"rotary position {last} is beyond the table's {MAX_POSITION} rows")
    text = text_start + torch.arange(num_text_tokens)
    columns: list[Tensor] = []
    image_positions = (
        torch.zeros(height * width, dtype=torch.long),
        _centred(height).repeat_interleave(width),
        _centred(width).repeat(height),
    )
    for positions, axis_dim in zip(image_positions, axes, strict=True):
        columns.append(_axis_angles(torch.cat((positions, text)), axis_dim, theta))
    angles = torch.cat(columns, dim=-1)
    return RopeTables(cos=angles.cos(), sin=angles.sin(), num_image_tokens=height * width)


def mmdit_rope(
    grid: tuple[int, int],
    num_text_tokens: int,
    axes: tuple[int, ...] = (8, 28, 28),
    theta: float = 10000.0,
    device: torch.device | str = "cpu",
) -> RopeTables:
    """Tables for one grid of image tokens and the text behind it.

    Image token at row y, column x: positions (0, y - ceil(h/2), x - ceil(w/2)) on the axes
    (frame, height, width). Text token i has max(floor(h/2), floor(w/2)) + i on all three.

    Args:
        grid: (height, width) in tokens of 16 pixels.
        num_text_tokens: tokens after the template's prefix; may be 0.
        axes: dimensions per axis; they sum to the head's width.
    """
    return _cpu_tables(grid, num_text_tokens, axes, theta).to(device)
