"""What is true of a scene: values that captions, renderers, scorers and tests all read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from petzval.data.layout import Box
from petzval.data.palette import RGB
from petzval.resolution import Resolution


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What lies behind everything.

    Attributes:
        colours: one name, or two from the first edge to the other.
        rgb: the exact colour of each.
        direction: "vertical" or "horizontal" for gradients, "" for plain.
    """

    colours: tuple[str, ...]
    rgb: tuple[RGB, ...]
    direction: str = ""

    @property
    def kind(self) -> str:
        """ "plain" or "gradient"."""
        return "plain" if len(self.colours) == 1 else "gradient"


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One pasted picture.

    Attributes:
        concept: id of what it shows.
        names: what it is called, by language; icons have an English name only.
        sprite: index in the library.
        box: where it lies, in pixels of the scene.
        colour: the colour it was painted in, or the measured dominant one, or None.
        painted: whether it is a mask painted in `colour`.
        size: "small", "medium" or "large", by its longer side against the shorter of the scene.
        cell: (row, column) of its centre on a 3 x 3 grid, each 0 to 2.
    """

    concept: str
    names: Mapping[str, str]
    sprite: int
    box: Box
    colour: str | None
    painted: bool
    size: str
    cell: tuple[int, int]

    @property
    def name(self) -> str:
        """The English noun phrase, without an article."""
        return self.names["en"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedWord:
    """A word drawn as letters, in a named colour."""

    text: str
    colour: str
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The ground truth of one picture; `petzval.data.render.render_scene` draws it.

    Attributes:
        seed, index, split: what it was sampled from.
        skill: one of `SKILL_WEIGHTS`.
        style: drawing style of its pictures, "" if it has none.
        objects: what is drawn, in order; `count` copies of one thing in counting scenes.
        relation: how the first object lies to the second: one of `RELATIONS`, or "".
        traits: words about a portrait.
    """

    seed: int
    index: int
    split: str
    skill: str
    resolution: Resolution
    background: Background
    style: str
    objects: tuple[SceneObject, ...]
    relation: str = ""
    word: RenderedWord | None = None
    traits: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.objects)
