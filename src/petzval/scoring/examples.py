"""What scorers are trained and checked on, as seen from below the rooms that compose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from petzval.scoring.scorer import Picture

BLOCK = 16
"""Scenes `BLOCK * k` to `BLOCK * k + BLOCK - 1` are of one size, so that they fit in one batch."""

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels; bottom and right are exclusive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledObject:
    """One thing in a composed picture, with its truth."""

    concept: str
    box: Box
    colour: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledScene:
    """A composed picture with its whole truth.

    Attributes:
        background: name of its plain colour, or None when it is not plain.
        style: drawing style, or None when styles are mixed.
    """

    picture: Picture
    objects: tuple[LabelledObject, ...]
    background: str | None = None
    style: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpriteLabel:
    """What one sprite shows and how it is drawn.

    Attributes:
        paintable: a white mask, to be painted in any colour before use.
        measured_only: kept out of training, for measuring the style classifier.
    """

    concept: str
    style: str
    paintable: bool = False
    measured_only: bool = False


@runtime_checkable
class ScorerData(Protocol):
    """Sprites and scenes to train on; the same index always gives the same answer."""

    @property
    def concepts(self) -> Mapping[str, Sequence[str]]:
        """English words (its name's, then related ones) of every concept that can be judged."""
        ...

    @property
    def names(self) -> Mapping[str, str]:
        """English name of every concept that can be judged."""
        ...

    @property
    def sprites(self) -> Sequence[SpriteLabel]:
        """Every sprite of the styles that scorers may learn from."""
        ...

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Premultiplied RGBA [side, side, 4] of one sprite."""
        ...

    def scene(self, index: int) -> LabelledScene:
        """One of an endless list of composed pictures: about 128 x 128 in area, sides that are
        multiples of 32, and a whole `BLOCK` of one size.
        """
        ...
