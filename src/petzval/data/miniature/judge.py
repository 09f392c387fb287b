"""Which scene a picture shows, by exact fit, and which of the things asked for it has.

In each cell every shape at every offset in every colour is laid over the picture, with the grey
behind it that fits best, and so is nothing at all; what has the least squared error is what is
there. That is the maximum-likelihood reading under Gaussian noise, not an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from petzval.data.miniature.captions import Asked, Caption
from petzval.data.miniature.world import (
    COLOURS,
    PAINT,
    PLACES,
    SHAPES,
    Canvas,
    Thing,
    outline,
)
from petzval.shapes import Images

Criterion: TypeAlias = Literal["count", "place", "colour", "shape", "structure"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

MAX_ERROR = 0.05
"""A cell is well drawn up to this mean square error a channel; one pixel of a small picture's cell
in a thing's colour instead of grey has about 0.03, noise of 0.15 everywhere 0.02."""

MAX_GREY_SPREAD = 0.25
"""Most difference between the greys of two cells of a well drawn picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a picture shows.

    Attributes:
        things: found, in the order of `PLACES`.
        offsets: of each, within its cell.
        grey: mean of the cells' backgrounds.
        error: mean square error of the worst cell, a channel.
        grey_spread: largest difference between the backgrounds of two cells.
    """

    things: tuple[Thing, ...]
    offsets: tuple[tuple[int, int], ...]
    grey: float
    error: float
    grey_spread: float

    @property
    def is_well_drawn(self) -> bool:
        """Whether the picture consists of whole things on one grey, as far as the limits go."""
        return self.error <= MAX_ERROR and self.grey_spread <= MAX_GREY_SPREAD


@dataclass(frozen=True, slots=True)
class Verdict:
    """Each criterion that the caption speaks of, as the share of its demands that are met."""

    criteria: dict[Criterion, float]

    @property
    def rubric(self) -> float:
        """Mean over the criteria: the reward, 0 to 1."""
        return sum(self.criteria.values()) / len(self.criteria)

    @property
    def is_right(self) -> bool:
        """Everything asked for is there, and well drawn."""
        return all(value == 1 for value in self.criteria.values())


def read(pictures: Images) -> list[Reading]:
    """What each picture shows; size and range are a canvas's, values outside [-1, 1] count."""
    canvas = Canvas(height=pictures.shape[2], width=pictures.shape[3])
    cells = _cells(pictures.float(), canvas)
    masks = _masks(canvas)
    error, grey = _fits(cells, masks)
    best = error.flatten(2).min(dim=2)
    mask, colour = best.indices // len(COLOURS), best.indices % len(COLOURS)
    greys = grey.gather(2, mask[..., None])[..., 0]
    return [
        _reading(canvas, *row)
        for row in zip(
            mask.tolist(), colour.tolist(), best.values.tolist(), greys.tolist(), strict=True
        )
    ]


def judge(reading: Reading, caption: Caption) -> Verdict:
    """Hold a picture's reading against a caption."""
    criteria: dict[Criterion, float] = {}
    if caption.count is not None:
        criteria["count"] = float(len(reading.things) == caption.count)
    candidates = [_candidate(reading.things, asked) for asked in caption.asked]
    pairs = list(zip(caption.asked, candidates, strict=True))
    for name in ("place", "colour", "shape"):
        met = [
            float(found is not None and getattr(found, name) == getattr(asked, name))
            for asked, found in pairs
            if getattr(asked, name) is not None
        ]
        if met:
            criteria[name] = sum(met) / len(met)
    criteria["structure"] = float(reading.is_well_drawn)
    return Verdict(criteria)


def score(pictures: Images, captions: Sequence[Caption]) -> list[Verdict]:
    """A verdict for each picture under its caption."""
    return [judge(r, caption) for r, caption in zip(read(pictures), captions, strict=True)]


def _candidate(things: Sequence[Thing], asked: Asked) -> Thing | None:
    """The thing that a caption can be speaking of: in its place, or else the likest one."""
    if asked.place is not None:
        return next((thing for thing in things if thing.place == asked.place), None)

    def likeness(thing: Thing) -> int:
        return (thing.colour == asked.colour) + (thing.shape == asked.shape)

    return max(things, key=likeness, default=None)


def _cells(pictures: Tensor, canvas: Canvas) -> Float[Tensor, "batch 4 3 pixels"]:
    height, width = canvas.cell
    cells = pictures.unflatten(3, (2, width)).unflatten(2, (2, height))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)


def _masks(canvas: Canvas) -> Float[Tensor, "masks pixels"]:
    """First nothing, then every shape at every offset."""
    height, width = canvas.cell
    masks = [torch.zeros(height, width)]
    for shape in SHAPES:
        for down, right in canvas.offsets:
            mask = torch.zeros(height, width)
            mask[down : down + canvas.side, right : right + canvas.side] = outline(
                shape, canvas.side
            ).float()
            masks.append(mask)
    return torch.stack(masks).flatten(1)


def _fits(cells: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean square error [B, 4, masks, colours] of each fit, and its grey [B, 4, masks]."""
    paint = torch.tensor([PAINT[colour] for colour in COLOURS])
    to_paint = (cells[..., None] - paint.T[:, None, :]).square().sum(2)  # [B, 4, pixels, colours]
    inside = torch.einsum("mp,bkpc->bkmc", masks, to_paint)
    outside = 1 - masks
    num_values = 3 * outside.sum(1)
    total = cells.sum(2) @ outside.T
    grey = total / num_values
    behind = cells.square().sum(2) @ outside.T - total.square() / num_values
    return (inside + behind[..., None]).clamp_min(0) / (3 * masks.shape[1]), grey


def _reading(
    canvas: Canvas,
    masks: Sequence[int],
    colours: Sequence[int],
    errors: Sequence[float],
    greys: Sequence[float],
) -> Reading:
    things: list[Thing] = []
    offsets: list[tuple[int, int]] = []
    for place, mask, colour in zip(PLACES, masks, colours, strict=True):
        if mask > 0:
            shape, offset = divmod(mask - 1, len(canvas.offsets))
            things.append(Thing(colour=COLOURS[colour], shape=SHAPES[shape], place=place))
            offsets.append(canvas.offsets[offset])
    return Reading(
        things=tuple(things),
        offsets=tuple(offsets),
        grey=sum(greys) / len(greys),
        error=max(errors),
        grey_spread=max(greys) - min(greys),
    )
