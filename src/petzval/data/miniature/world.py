"""Scenes of one to three shapes in four places, and their pictures on canvases of several sizes.

A canvas is divided into 2 x 2 cells, one a place. A thing fills its cell but for one or more pixels
a side; where in the cell it stands, and the grey behind it, are free: no caption ever says them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from petzval.errors import DataError
from petzval.shapes import Images, LatentTokens

Colour: TypeAlias = Literal["red", "green", "blue", "yellow"]
Shape: TypeAlias = Literal["square", "ring", "cross"]
Place: TypeAlias = Literal["top left", "top right", "bottom left", "bottom right"]

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
PLACES: tuple[Place, ...] = get_args(Place)

PAINT: dict[Colour, tuple[float, float, float]] = {
    "red": (1.0, -1.0, -1.0),
    "green": (-1.0, 1.0, -1.0),
    "blue": (-1.0, -1.0, 1.0),
    "yellow": (1.0, 1.0, -1.0),
}
"""Red, green and blue in [-1, 1]."""

PATCH = 3
"""Edge of a token in pixels; a token has 3 x 3 x 3 channels."""

CHANNELS = 3 * PATCH**2

GREY = (-0.5, 0.5)
"""The background is one grey, uniform between these."""

MAX_THINGS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """A size of picture in pixels, height first.

    Raises:
        DataError: a side is not a multiple of 6, or below 12.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if any(side < 12 or side % (2 * PATCH) for side in (self.height, self.width)):
            raise DataError(
                f"a canvas of {self.height} x {self.width} pixels cannot be divided into cells",
                f"both sides must be multiples of {2 * PATCH}, and at least 12",
            )

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a place in pixels."""
        return self.height // 2, self.width // 2

    @property
    def side(self) -> int:
        """Edge of a thing in pixels: the largest odd number below the cell's shorter side."""
        shorter = min(self.cell)
        return shorter - 1 - shorter % 2

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Where in its cell a thing may stand: (down, right) of the cell's corner."""
        height, width = self.cell
        downs, rights = range(height - self.side + 1), range(width - self.side + 1)
        return tuple(product(downs, rights))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // PATCH, self.width // PATCH

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture."""
        return self.grid[0] * self.grid[1]

    @classmethod
    def of_grid(cls, grid: tuple[int, int]) -> Canvas:
        """The canvas with these rows and columns of tokens."""
        return cls(height=grid[0] * PATCH, width=grid[1] * PATCH)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


SMALL = Canvas(height=12, width=12)
LARGE = Canvas(height=18, width=18)
WIDE = Canvas(height=12, width=24)
TALL = Canvas(height=24, width=12)


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """A shape of one colour in one place."""

    colour: Colour
    shape: Shape
    place: Place


@dataclass(frozen=True, slots=True)
class Scene:
    """All that captions may speak of: one to three things, each in a place of its own.

    Raises:
        DataError: no thing, too many, two in one place, or not in the order of `PLACES`.
    """

    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        places = [thing.place for thing in self.things]
        if not 1 <= len(places) <= MAX_THINGS or places != [p for p in PLACES if p in places]:
            raise DataError(
                f"a scene cannot have things at {places}",
                f"1 to {MAX_THINGS} of them, each in a place of its own, in the order of PLACES",
            )


@dataclass(frozen=True, slots=True)
class Freedom:
    """What captions never speak of: the grey of the background, and each thing's offset."""

    grey: float
    offsets: tuple[tuple[int, int], ...]


def all_scenes(num_things: int) -> list[Scene]:
    """Every scene of so many things: 48 of one, 864 of two, 6,912 of three."""
    scenes: list[Scene] = []
    for places in combinations(PLACES, num_things):
        for looks in product(product(COLOURS, SHAPES), repeat=num_things):
            things = [
                Thing(colour=colour, shape=shape, place=place)
                for place, (colour, shape) in zip(places, looks, strict=True)
            ]
            scenes.append(Scene(tuple(things)))
    return scenes


def free(scene: Scene, canvas: Canvas, rng: np.random.Generator) -> Freedom:
    """Draw what the scene leaves open, everything alike."""
    chosen = rng.integers(len(canvas.offsets), size=len(scene.things))
    offsets = tuple(canvas.offsets[int(number)] for number in chosen)
    return Freedom(float(rng.uniform(*GREY)), offsets)


def outline(shape: Shape, side: int) -> Bool[Tensor, "side side"]:
    """Which pixels of its square a thing covers."""
    mask = torch.ones(side, side, dtype=torch.bool)
    if shape == "ring":
        mask[1:-1, 1:-1] = False
    elif shape == "cross":
        middle = torch.arange(side) == side // 2
        mask = middle[:, None] | middle[None, :]
    return mask


def draw(scene: Scene, canvas: Canvas, freedom: Freedom) -> Float[Tensor, "3 height width"]:
    """The picture, in [-1, 1]."""
    picture = torch.full((3, canvas.height, canvas.width), freedom.grey)
    height, width = canvas.cell
    for thing, (down, right) in zip(scene.things, freedom.offsets, strict=True):
        row, column = divmod(PLACES.index(thing.place), 2)
        top, left = row * height + down, column * width + right
        window = picture[:, top : top + canvas.side, left : left + canvas.side]
        covered = outline(thing.shape, canvas.side)
        window[:, covered] = torch.tensor(PAINT[thing.colour])[:, None]
    return picture


def to_tokens(pictures: Images) -> LatentTokens:
    """Pictures → tokens of 3 x 3 pixels, row-major, as the denoiser reads them."""
    tokens = torch.nn.functional.pixel_unshuffle(pictures, PATCH)
    return tokens.flatten(2).transpose(1, 2)


def to_pictures(tokens: LatentTokens, canvas: Canvas) -> Images:
    """The inverse of `to_tokens`."""
    grid = tokens.transpose(1, 2).unflatten(2, canvas.grid)
    return torch.nn.functional.pixel_shuffle(grid, PATCH)


def draw_all(
    scenes: Sequence[Scene], canvas: Canvas, rng: np.random.Generator
) -> tuple[Images, list[Freedom]]:
    """Pictures of some scenes, and what was drawn for each beside its scene."""
    freedoms = [free(scene, canvas, rng) for scene in scenes]
    pictures = [draw(scene, canvas, each) for scene, each in zip(scenes, freedoms, strict=True)]
    return torch.stack(pictures), freedoms
