"""Pictures made of overlapping discs, "dead leaves", whose statistics are those of photographs.

The model is Matheron's; that discs with radii of density r^-3 give the statistics of natural
pictures is in Lee, Mumford and Huang, "Occlusion models for natural images" (2001). Departures:

1. A leaf carries a linear shade from its colour to another one, and some are seen through.
2. Colours are uniform in RGB, so that a fit sees the whole cube and not only nature's part.
"""

from __future__ import annotations

import torch

from petzval.shapes import Images

_SMALLEST, _LARGEST = 0.01, 0.5
"""Radii, as parts of the side."""


def dead_leaves(num_pictures: int, side: int, *, seed: int = 0, num_leaves: int = 240) -> Images:
    """Square pictures in [-1, 1], the same for the same seed.

    Args:
        side: in pixels.
        num_leaves: of each picture; the last ones lie on top.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    pictures = torch.empty(num_pictures, 3, side, side)
    for picture in pictures:
        picture[:] = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        for _ in range(num_leaves):
            y, x, size, angle, veil = torch.rand(5, generator=generator).tolist()
            near, far = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
            radius = _radius(size)
            away_y, away_x = (rows - y) / radius, (columns - x) / radius
            turn = torch.tensor(angle * 2 * torch.pi)
            shade = ((away_x * turn.cos() + away_y * turn.sin()) * 0.5 + 0.5).clamp(0, 1)
            leaf = near + (far - near) * shade
            cover = (away_y**2 + away_x**2 < 1).float() * (1.0 if veil < 0.8 else 0.5)
            picture.lerp_(leaf, cover)
    return pictures


def _radius(uniform: float) -> float:
    """The radius whose share of leaves below it is `uniform`, for a density of r^-3."""
    least, most = _SMALLEST**-2, _LARGEST**-2
    return (least + uniform * (most - least)) ** -0.5
