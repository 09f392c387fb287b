"""Pictures that are right by construction: the scorer's own examination.

For each question a scene is composed that shows what is asked, drawn in a style that no scorer was
trained on (OpenMoji, EmojiOne) wherever that style has the thing. The scorer should pass nearly
all of them, and nearly none of them under another question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from petzval.data.layout import Box, place_count, place_pair, place_single
from petzval.data.palette import clash
from petzval.data.render import render_scene
from petzval.data.scene import Background, Scene, SceneObject
from petzval.data.sprites import Sprite, SpriteLibrary
from petzval.errors import DataError
from petzval.evals.questions import Question
from petzval.resolution import Resolution
from petzval.scoring.colours import BACKGROUND_COLOURS
from petzval.scoring.positions import POSITIONS
from petzval.scoring.scorer import ExpectedObject, Picture

UNSEEN_STYLES: tuple[str, ...] = ("openmoji", "emojione")
"""Styles that neither the model nor the scorer was trained on, the preferred one first."""

_PAINTED = ("shape", "silhouette")


def real_picture(
    library: SpriteLibrary,
    question: Question,
    index: int,
    resolution: Resolution,
    *,
    known_style: bool = False,
) -> Picture:
    """A picture that shows what `question` asks; the same arguments, the same picture.

    Args:
        known_style: draw in styles that models are trained on, in place of unseen ones.

    Raises:
        DataError: the library has no fitting picture of an asked concept.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((7, index))))
    expectation = question.expectation
    sprites = [
        _sprite(library, thing, expectation.style, known_style, rng)
        for thing in expectation.objects
    ]
    background = _background(expectation.background, expectation.objects, sprites, rng)
    boxes = _boxes(question, sprites, resolution, rng)
    first = expectation.objects[0]
    copies = sprites * (first.count or 1) if len(sprites) == 1 else sprites
    things = tuple(
        _object(library, sprite, box, first.colour, resolution)
        for sprite, box in zip(copies, boxes, strict=True)
    )
    scene = Scene(
        seed=7,
        index=index,
        split="examination",
        skill=question.skill,
        resolution=resolution,
        background=background,
        style=sprites[0].style,
        objects=things,
        relation=expectation.relation or "",
    )
    return render_scene(library, scene)


def lone_picture(
    library: SpriteLibrary, sprite: Sprite, index: int, resolution: Resolution
) -> Picture:
    """One particular sprite, large, on a plain background."""
    thing = ExpectedObject(concept=sprite.concept)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((8, index))))
    box = place_single(
        resolution, sprite.box, rng.uniform(0.6, 0.92), (1, 1), rng.uniform(-1, 1, 2)
    )
    scene = Scene(
        seed=8,
        index=index,
        split="examination",
        skill="single",
        resolution=resolution,
        background=_background(None, [thing], [sprite], rng),
        style=sprite.style,
        objects=(_object(library, sprite, box, None, resolution),),
    )
    return render_scene(library, scene)


def shuffled(asked: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Each question with another one of the same skill and language that asks something else.

    Which one is drawn by a hash of the prompt's id. Where there is none, the question is left out.
    """
    pairs: list[tuple[Question, Question]] = []
    for question in asked:
        different = [
            other
            for other in asked
            if (other.skill, other.language) == (question.skill, question.language)
            and other.expectation != question.expectation
        ]
        if different:
            digest = hashlib.sha256(f"shuffle {question.prompt_id}".encode()).digest()
            pairs.append((question, different[int.from_bytes(digest[:8]) % len(different)]))
    return pairs


def _sprite(
    library: SpriteLibrary,
    thing: ExpectedObject,
    style: str | None,
    known_style: bool,
    rng: np.random.Generator,
) -> Sprite:
    """A picture of the thing: in `style`, paintable where a colour is asked, else as wished."""
    known = [one for one in library.by_concept.get(thing.concept, ()) if one.kind != "portrait"]
    if thing.colour is not None:
        painted = ([one for one in known if one.style == name] for name in _PAINTED)
        usable = next((group for group in painted if group), [])
    elif style is not None:
        usable = [one for one in known if one.style == style]
    else:
        unseen = [[one for one in known if one.style == name] for name in UNSEEN_STYLES]
        seen = [one for one in known if one.kind == "picture" and not one.style_held_out]
        wished = [seen, *unseen] if known_style else [*unseen, seen]
        usable = next((group for group in wished if group), [])
    if not usable:
        wanted = f" in {style}" if style is not None else ""
        raise DataError(
            f"the library has no picture of {thing.concept!r}{wanted}",
            "run: petzval data build mini",
        )
    return usable[int(rng.integers(len(usable)))]


def _background(
    wanted: str | None,
    things: Sequence[ExpectedObject],
    sprites: Sequence[Sprite],
    rng: np.random.Generator,
) -> Background:
    """The asked background, or one on which everything can be seen."""
    colours = [thing.colour or sprite.colour for thing, sprite in zip(things, sprites, strict=True)]
    fitting = [
        name
        for name in BACKGROUND_COLOURS
        if not any(colour is not None and clash(colour, name) for colour in colours)
    ]
    pool = fitting or list(BACKGROUND_COLOURS)
    name = wanted or pool[int(rng.integers(len(pool)))]
    shift = rng.integers(-5, 6, 3)
    red, green, blue = (int(v) for v in np.clip(np.add(BACKGROUND_COLOURS[name], shift), 0, 255))
    return Background(colours=(name,), rgb=((red, green, blue),))


def _boxes(
    question: Question,
    sprites: Sequence[Sprite],
    resolution: Resolution,
    rng: np.random.Generator,
) -> list[Box]:
    expectation = question.expectation
    first = expectation.objects[0]
    jitter = rng.uniform(-1, 1, (5, 2))
    if len(sprites) == 2:
        relation = expectation.relation or "left of"
        pair = (sprites[0].box, sprites[1].box)
        return list(place_pair(resolution, pair, relation, rng.uniform(0.86, 1, 2), jitter[:2]))
    if first.count is not None:
        size = rng.uniform(0.74, 0.92)
        return place_count(resolution, sprites[0].box, first.count, size, jitter)
    if first.position is not None:
        cell = divmod(POSITIONS.index(first.position), 3)
        size = rng.uniform(0.34, 0.46)
        return [place_single(resolution, sprites[0].box, size, cell, jitter[0])]
    size = rng.uniform(0.6, 0.92)
    return [place_single(resolution, sprites[0].box, size, (1, 1), jitter[0])]


def _object(
    library: SpriteLibrary, sprite: Sprite, box: Box, paint: str | None, resolution: Resolution
) -> SceneObject:
    row = min(2, max(0, int(3 * (box.top + box.height / 2) / resolution.height)))
    column = min(2, max(0, int(3 * (box.left + box.width / 2) / resolution.width)))
    return SceneObject(
        concept=sprite.concept,
        names=library.concepts[sprite.concept].names,
        sprite=sprite.index,
        box=box,
        colour=paint or sprite.colour,
        painted=paint is not None,
        size="",
        cell=(row, column),
    )
