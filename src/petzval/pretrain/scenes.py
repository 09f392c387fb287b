"""Pictures and captions as a function of an index: what the objectives learn from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petzval.data.caption import DEFAULT_STYLE, training_caption
from petzval.data.languages import LANGUAGES
from petzval.data.render import render_scene
from petzval.data.scene import Scene, sample_scene
from petzval.data.sprites import SpriteLibrary
from petzval.data.texts import corpus_example
from petzval.resolution import Resolution

Scenes = Literal["sprites", "coloured_squares"]
"""A world of scenes: composed illustrations, or squares that need no data."""


class Example(NamedTuple):
    """What the language model learns from: a prompt, its English answer, the prompt's language."""

    prompt: str
    answer: str
    language: str


@runtime_checkable
class SceneSource(Protocol):
    """An endless series of captioned pictures; every answer is a pure function of its arguments."""

    @property
    def languages(self) -> Sequence[str]: ...

    def pixels(self, index: int, resolution: Resolution) -> NDArray[np.uint8]:
        """The picture, RGB [height, width, 3]."""
        ...

    def caption(self, index: int, resolution: Resolution, variant: int = 0) -> str:
        """An English caption; variants differ in length and wording."""
        ...

    def is_plain(self, index: int, resolution: Resolution) -> bool:
        """Whether the scene is one large thing that everybody knows, drawn as a plain prompt for
        it would have it.
        """
        ...

    def example(self, index: int) -> Example:
        """A prompt in one of `languages`, and the English caption it should be answered with."""
        ...


class SpriteScenes:
    """Composed illustrations from a built data folder.

    Args:
        folder: written by `petzval data build`.
        seed: names the series.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed

    @cached_property
    def _library(self) -> SpriteLibrary:
        return SpriteLibrary.open(self._folder)

    @property
    def languages(self) -> Sequence[str]:
        """All languages of the corpus."""
        return LANGUAGES

    def _scene(self, index: int, resolution: Resolution) -> Scene:
        return sample_scene(self._library, seed=self._seed, index=index, resolution=resolution)

    def pixels(self, index: int, resolution: Resolution) -> NDArray[np.uint8]:
        """The picture of scene `index`."""
        return render_scene(self._library, self._scene(index, resolution))

    def caption(self, index: int, resolution: Resolution, variant: int = 0) -> str:
        """A caption of scene `index`, its length drawn as well."""
        return training_caption(self._scene(index, resolution), seed=variant)

    def is_plain(self, index: int, resolution: Resolution) -> bool:
        """One large thing of the core vocabulary, as an unstyled prompt for it means it, or
        painted in one colour.
        """
        scene = self._scene(index, resolution)
        if scene.skill != "colour" and (scene.skill != "single" or scene.style != DEFAULT_STYLE):
            return False
        thing = scene.objects[0]
        return thing.size == "large" and self._library.concepts[thing.concept].core

    def example(self, index: int) -> Example:
        """Example `index` of the corpus."""
        return Example(*corpus_example(self._library, self._seed, index))


_COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
}
_PLACES = {"left": 0.25, "right": 0.75}
_SPANISH = {"red": "rojo", "green": "verde", "blue": "azul", "yellow": "amarillo"}


class ColouredSquares:
    """A toy world that needs no data: one square of four colours at one of two places."""

    languages: Sequence[str] = ("en", "es")

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def _truth(self, index: int) -> tuple[str, str]:
        rng = np.random.default_rng((self._seed, index))
        return str(rng.choice(list(_COLOURS))), str(rng.choice(list(_PLACES)))

    def pixels(self, index: int, resolution: Resolution) -> NDArray[np.uint8]:
        """A square of a quarter of the shorter side, on white."""
        colour, place = self._truth(index)
        height, width = resolution.height, resolution.width
        half = min(height, width) // 4
        row, column = height // 2, int(width * _PLACES[place])
        canvas = np.full((height, width, 3), 255, np.uint8)
        canvas[row - half : row + half, max(0, column - half) : column + half] = _COLOURS[colour]
        return canvas

    def caption(self, index: int, resolution: Resolution, variant: int = 0) -> str:
        """Colour and place, short or longer."""
        colour, place = self._truth(index)
        patterns = ("a {} square on the {}", "A {} square stands on the {} of a white picture.")
        return patterns[variant % 2].format(colour, place)

    def is_plain(self, index: int, resolution: Resolution) -> bool:
        """The red ones."""
        return self._truth(index)[0] == "red"

    def example(self, index: int) -> Example:
        """Colour and place, every third prompt in Spanish."""
        colour, place = self._truth(index)
        answer = f"a {colour} square on the {place}"
        if index % 3:
            return Example(f"A {colour} square stands on the {place}.", answer, "en")
        side = "izquierda" if place == "left" else "derecha"
        return Example(f"un cuadrado {_SPANISH[colour]} a la {side}", answer, "es")


def scene_source(kind: Scenes, data_folder: Path, seed: int) -> SceneSource:
    """The series `seed` of a world; only sprites need the data folder."""
    return SpriteScenes(data_folder, seed) if kind == "sprites" else ColouredSquares(seed)


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """RGB [height, width, 3] of bytes → float32 [3, height, width] in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 127.5 - 1
