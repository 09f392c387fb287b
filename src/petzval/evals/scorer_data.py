"""The sprite library as scorers want to see it: every concept, but only the trained styles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from petzval.data.render import render_scene
from petzval.data.scene import Scene, sample_scene
from petzval.data.sprites import Sprite, SpriteLibrary
from petzval.resolution import Resolution
from petzval.scoring.examples import BLOCK, LabelledObject, LabelledScene, SpriteLabel

SCENE_SEED = 977
"""Names the series of scenes that detectors are trained on; the denoiser's has another number."""

_SIZES = ((128, 128), (96, 160), (160, 96), (128, 128), (96, 192), (192, 96))
_SKILLS = ("single", "count", "position", "two", "count", "colour")


class LibraryScorerData:
    """`ScorerData` of a built library.

    Portraits are left out: nothing asks for them by name.
    """

    def __init__(self, library: SpriteLibrary) -> None:
        self._library = library
        self._sprites = [
            one for one in library.sprites if not one.style_held_out and one.kind != "portrait"
        ]
        shown = sorted({one.concept for one in self._sprites})
        self._concepts = {concept: _words(library, concept) for concept in shown}
        self._names = {concept: library.concepts[concept].name for concept in shown}

    @property
    def concepts(self) -> Mapping[str, Sequence[str]]:
        """English words of every concept that has a picture in a trained style."""
        return self._concepts

    @property
    def names(self) -> Mapping[str, str]:
        """English name of each of them."""
        return self._names

    @property
    def sprites(self) -> Sequence[SpriteLabel]:
        """All pictures in trained styles; one in ten only serves to measure style."""
        return [
            SpriteLabel(
                concept=one.concept,
                style=one.style,
                paintable=one.kind == "mask",
                measured_only=is_measured_only(one),
            )
            for one in self._sprites
        ]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Premultiplied RGBA [side, side, 4] of one of `sprites`."""
        return self._library.pixels(self._sprites[index].index)

    def scene(self, index: int) -> LabelledScene:
        """Scene `index` of a series that shows every skill, and all concepts."""
        height, width = _SIZES[index // BLOCK % len(_SIZES)]
        return labelled(
            self._library,
            sample_scene(
                self._library,
                seed=SCENE_SEED,
                index=index,
                resolution=Resolution(height=height, width=width),
                split="trained_styles",
                skill=_SKILLS[index % len(_SKILLS)],
            ),
        )


def is_measured_only(sprite: Sprite) -> bool:
    """Whether a picture is kept out of training the style classifier: one in ten, by hash."""
    return hashlib.sha256(f"style {sprite.source}/{sprite.key}".encode()).digest()[0] < 26


def labelled(library: SpriteLibrary, scene: Scene) -> LabelledScene:
    """A drawn scene with its truth."""
    return LabelledScene(
        picture=render_scene(library, scene),
        objects=tuple(
            LabelledObject(
                concept=one.concept,
                box=(
                    one.box.top,
                    one.box.left,
                    one.box.top + one.box.height,
                    one.box.left + one.box.width,
                ),
                colour=one.colour if one.painted else None,
            )
            for one in scene.objects
        ),
        background=scene.background.colours[0] if scene.background.kind == "plain" else None,
        style=scene.style or None,
    )


def _words(library: SpriteLibrary, concept: str) -> tuple[str, ...]:
    known = library.concepts[concept]
    text = " ".join([known.name, *known.keywords.get("en", ())]).lower()
    return tuple(dict.fromkeys(re.findall(r"[^\W_]+", text))) or (concept,)
