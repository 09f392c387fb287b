"""Cut squares out of pictures, the same way in training and in judging."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from petzval.scoring.examples import Box
from petzval.scoring.scorer import Picture

MARGIN = 0.12
"""Room left around the longer side of a box, as a fraction of it, on both sides together."""


def to_tensor(picture: Picture) -> Float[Tensor, "3 height width"]:
    """A picture in [0, 1], channels first."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def cut_out(
    picture: Float[Tensor, "3 height width"], box: Box, side: int
) -> Float[Tensor, "3 side side"]:
    """The square around a box, scaled to `side` with antialiasing.

    Where the square leaves the picture, the picture's edge is repeated.
    """
    top, left, bottom, right = box
    half = max(2.0, max(bottom - top, right - left) * (1 + MARGIN) / 2)
    y, x = (top + bottom) / 2, (left + right) / 2
    rows = torch.arange(round(y - half), round(y + half)).clamp(0, picture.shape[1] - 1)
    columns = torch.arange(round(x - half), round(x + half)).clamp(0, picture.shape[2] - 1)
    square = picture[:, rows][:, :, columns][None]
    return F.interpolate(
        square, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )[0]


def paste(
    sprite: NDArray[np.uint8], behind: tuple[int, int, int], paint: tuple[int, int, int] | None
) -> Float[Tensor, "3 side side"]:
    """A sprite (premultiplied RGBA) over a plain colour, in [0, 1].

    Args:
        paint: colour for a white mask; None leaves the sprite as it is.
    """
    pixels = torch.from_numpy(np.array(sprite)).permute(2, 0, 1).float() / 255
    colour, alpha = pixels[:3], pixels[3:]
    if paint is not None:
        colour = colour * (torch.tensor(paint).float() / 255)[:, None, None]
    ground = (torch.tensor(behind).float() / 255)[:, None, None]
    return colour + (1 - alpha) * ground


def soften(
    pictures: Float[Tensor, "batch 3 height width"],
    generator: torch.Generator,
    *,
    smallest: float,
    grain: float = 0.05,
) -> Float[Tensor, "batch 3 height width"]:
    """Blur by scaling down and up again, and add grain, as much as chance says for each picture.

    Args:
        generator: of the CPU; the only source of chance.
        smallest: the strongest blur scales the sides down to this share.
        grain: largest standard deviation of the noise.
    """
    count, _, height, width = pictures.shape
    # One picture in three stays sharp.
    shares: list[float] = (
        smallest + (1.5 - smallest) * torch.rand(count, generator=generator)
    ).tolist()
    softened = [
        F.interpolate(
            F.interpolate(
                one[None],
                size=(max(4, round(share * height)), max(4, round(share * width))),
                mode="bilinear",
                antialias=True,
            ),
            size=(height, width),
            mode="bilinear",
        )
        if share < 1
        else one[None]
        for one, share in zip(pictures, shares, strict=True)
    ]
    strength = grain * torch.rand(count, generator=generator)[:, None, None, None]
    noise = torch.randn(pictures.shape, generator=generator)
    return (torch.cat(softened) + strength * noise).clamp(0, 1)


def disturb(
    cutouts: Float[Tensor, "batch 3 old_side old_side"], side: int, generator: torch.Generator
) -> Float[Tensor, "batch 3 side side"]:
    """Mirror, shift, scale, blur and grain, as an imperfect box on an imperfect picture would.

    Half stay sharp and most stay free of grain: a feature that has only ever seen grain is lost on
    a clean picture. Like `cut_out`, this scales with antialiasing.

    Args:
        side: height and width that come out.
        generator: of the CPU; the only source of chance.
    """
    count, _, height, width = cutouts.shape

    def uniform(low: float, high: float) -> Float[Tensor, " batch"]:
        return low + (high - low) * torch.rand(count, generator=generator)

    scale = uniform(1.0, 1.25)
    mirror = torch.where(uniform(0.0, 1.0) < 0.3, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale * mirror
    theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-0.1, 0.1), uniform(-0.1, 0.1)
    grid = F.affine_grid(theta, [count, 3, height, width], align_corners=False)
    moved = F.grid_sample(cutouts, grid, padding_mode="border", align_corners=False)
    detail: list[float] = torch.clamp(uniform(0.3, 1.7), max=1.0).tolist()
    scaled = torch.cat(
        [_resized(one[None], side, share) for one, share in zip(moved, detail, strict=True)]
    )
    strength = torch.where(uniform(0.0, 1.0) < 0.35, uniform(0.0, 0.04), 0.0)[:, None, None, None]
    noise = torch.randn(count, 3, side, side, generator=generator)
    return (scaled + strength * noise).clamp(0, 1)


def _resized(
    picture: Float[Tensor, "1 3 height width"], side: int, detail: float
) -> Float[Tensor, "1 3 side side"]:
    """Scaled to `side`, by way of a smaller size when only a share of the detail is to stay."""
    small = max(4, round(detail * side))
    if small < side:
        picture = F.interpolate(picture, size=(small, small), mode="bilinear", antialias=True)
    return F.interpolate(picture, size=(side, side), mode="bilinear", antialias=True)
