"""A scene in words, and what those words ask for.

Dense captions say everything that can be said, brief ones a part of one thing: the ends between
which the paper compares (section 2.1: detailed, brief, and half of each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from petzval.data.miniature.world import Colour, Place, Scene, Shape

CaptionKind: TypeAlias = Literal["dense", "brief", "mixed"]
CAPTION_KINDS: tuple[CaptionKind, ...] = get_args(CaptionKind)

_COUNTS = ("one shape", "two shapes", "three shapes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a caption says of one thing; None where it says nothing."""

    colour: Colour | None = None
    shape: Shape | None = None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """Words, and what a picture must show to be true to them.

    Attributes:
        count: how many things there are in all; None where the words do not say.
    """

    text: str
    asked: tuple[Asked, ...]
    count: int | None = None


def dense(scene: Scene) -> Caption:
    """Everything: `two shapes: red square top left, blue ring bottom right`."""
    asked = tuple(Asked(colour=t.colour, shape=t.shape, place=t.place) for t in scene.things)
    text = f"{_COUNTS[len(asked) - 1]}: {', '.join(_words(each) for each in asked)}"
    return Caption(text, asked, len(asked))


def brief(scene: Scene, rng: np.random.Generator) -> Caption:
    """Two of the three words about one thing: `red square`, `square top left`, `red shape …`."""
    return brief_forms(scene)[int(rng.integers(3 * len(scene.things)))]


def brief_forms(scene: Scene) -> list[Caption]:
    """All that `brief` may say of a scene, three for each thing."""
    forms: list[Caption] = []
    for thing in scene.things:
        parts = (
            Asked(colour=thing.colour, shape=thing.shape),
            Asked(shape=thing.shape, place=thing.place),
            Asked(colour=thing.colour, place=thing.place),
        )
        forms += [Caption(_words(asked), (asked,)) for asked in parts]
    return forms


def caption(scene: Scene, kind: CaptionKind, rng: np.random.Generator) -> Caption:
    """A caption of this kind; of `mixed`, half are dense and half brief."""
    if kind == "mixed":
        kind = "dense" if rng.random() < 0.5 else "brief"
    return dense(scene) if kind == "dense" else brief(scene, rng)


def _words(asked: Asked) -> str:
    words = (asked.colour, asked.shape or "shape", asked.place)
    return " ".join(word for word in words if word is not None)
