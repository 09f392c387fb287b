"""A world small enough to learn in seconds: four painted shapes on plain backgrounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from petzval.scoring.colours import BACKGROUND_COLOURS, OBJECT_COLOURS
from petzval.scoring.examples import BLOCK, LabelledObject, LabelledScene, SpriteLabel

SHAPES = ("disc", "square", "triangle", "cross")
SIDE = 48


def mask_of(shape: str, side: int = SIDE) -> NDArray[np.uint8]:
    """A shape as alpha [side, side], filling the square."""
    y, x = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    inside = {
        "disc": x**2 + y**2 <= 1,
        "square": np.ones_like(x, bool),
        "triangle": np.abs(x) <= (y + 1) / 2,
        "cross": (np.abs(x) <= 0.3) | (np.abs(y) <= 0.3),
    }[shape]
    return (255 * inside).astype(np.uint8)


def draw(
    canvas: NDArray[np.uint8], shape: str, colour: str, top: int, left: int, side: int
) -> LabelledObject:
    """Paint a shape on a canvas, in place."""
    area = canvas[top : top + side, left : left + side]
    area[mask_of(shape, side) > 0] = OBJECT_COLOURS[colour]
    return LabelledObject(concept=shape, box=(top, left, top + side, left + side), colour=colour)


def scene_of(
    *things: tuple[str, str, tuple[int, int]],
    background: str = "white",
    side: int = 36,
    size: tuple[int, int] = (128, 128),
) -> LabelledScene:
    """A picture of (shape, colour, (top, left)) on a background."""
    canvas = np.empty((*size, 3), np.uint8)
    canvas[...] = BACKGROUND_COLOURS[background]
    objects = tuple(draw(canvas, shape, colour, *at, side) for shape, colour, at in things)
    return LabelledScene(picture=canvas, objects=objects, background=background, style="flat")


class ShapeData:
    """`ScorerData` of the four shapes, in two "styles": solid and with a hole."""

    @property
    def concepts(self) -> Mapping[str, Sequence[str]]:
        return {shape: (shape, "shape") for shape in SHAPES}

    @property
    def names(self) -> Mapping[str, str]:
        return {shape: shape for shape in SHAPES}

    @property
    def sprites(self) -> Sequence[SpriteLabel]:
        return [
            SpriteLabel(concept=shape, style=style, paintable=True)
            for shape in SHAPES
            for style in ("solid", "hollow")
        ]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        mask = mask_of(SHAPES[index // 2])
        if index % 2:
            mask = mask.copy()
            mask[18:30, 18:30] = 0
        return np.repeat(mask[..., None], 4, axis=2)

    def scene(self, index: int) -> LabelledScene:
        rng = np.random.Generator(np.random.Philox(index))
        size = ((128, 128), (96, 160))[index // BLOCK % 2]
        side = int(rng.integers(24, 40))
        names = list(BACKGROUND_COLOURS)
        corners = [(4, 4), (4, size[1] - 44), (size[0] - 44, 4), (size[0] - 44, size[1] - 44)]
        things = [
            (SHAPES[int(rng.integers(4))], ("red", "blue", "black")[int(rng.integers(3))], at)
            for at in corners[: int(rng.integers(1, 4))]
        ]
        background = ("white", "beige", "light blue")[int(rng.integers(3))]
        assert background in names
        return scene_of(*things, background=background, side=side, size=size)


class PixelBackbone:
    """`PictureFeatures` without weights: the cut-out's brightness, shrunk to 12 x 12."""

    num_features = 144
    side = 48
    identity = "pixels"

    def __call__(
        self, cutouts: Float[Tensor, "batch 3 side side"]
    ) -> Float[Tensor, "batch features"]:
        grey = cutouts.mean(dim=1, keepdim=True)
        small = F.interpolate(grey, size=(12, 12), mode="bilinear", antialias=True)
        flat = small.flatten(1)
        border = grey[:, 0, 0, 0][:, None]
        return torch.abs(flat - border)
