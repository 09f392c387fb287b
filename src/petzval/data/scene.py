"""Scenes: composed pictures whose whole truth is known, as a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from petzval.data.ground_truth import Background, RenderedWord, Scene, SceneObject
from petzval.data.layout import Box, place_count, place_pair, place_single, place_word
from petzval.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS, clash
from petzval.data.sprites import Choices, Sprite, SpriteLibrary
from petzval.errors import DataError
from petzval.resolution import Resolution

SKILL_WEIGHTS: Mapping[str, float] = {
    "single": 0.45,
    "position": 0.10,
    "colour": 0.14,
    "two": 0.12,
    "count": 0.11,
    "portrait": 0.04,
    "word": 0.04,
}
"""What a scene exercises, and how often it is drawn."""

STYLE_WEIGHTS: Mapping[str, float] = {
    "fluent-3d": 5.0,
    "noto": 1.2,
    "noto-v1": 0.7,
    "fluent": 1.0,
    "fluent-flat": 1.2,
    "twemoji": 1.0,
    "fxemoji": 0.7,
    "colour-icon": 0.5,
    "flat-icon": 0.5,
    "weather-icon": 0.7,
    "round-flag": 1.0,
    "clip-art": 0.5,
}
"""How often a style is drawn among those a concept has; unlisted styles count 1."""

GRADIENTS: tuple[tuple[str, str], ...] = (
    ("light blue", "white"), ("yellow", "orange"), ("orange", "pink"), ("pink", "purple"),
    ("blue", "purple"), ("light blue", "blue"), ("teal", "blue"), ("black", "blue"),
    ("white", "beige"), ("green", "yellow"),
)  # fmt: skip
"""Colours of the gradient backgrounds, from top to bottom (or left to right)."""

WORDS: tuple[str, ...] = (
    "HELLO", "OPEN", "YES", "NO", "LOVE", "STOP", "GO", "WOW", "HI", "SALE", "NEW", "ART", "FUN",
    "SUN", "MOON", "STAR", "CAT", "DOG", "HOME", "PLAY", "COOL", "GOOD", "JOY", "MUSIC", "PEACE",
    "PARTY", "BOOK", "CAFE", "FREE", "HAPPY", "HOPE", "KEY", "LIFE", "MAP", "NICE", "OK", "PARK",
    "RED", "SKY", "TEA", "TREE", "UP", "WIN", "ZOO", "BLUE", "GOLD", "LENS", "2026",
)  # fmt: skip
"""What rendered words say."""

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
_COUNT_WEIGHTS = (0.08, 0.27, 0.25, 0.2, 0.2)
_GRADIENT_SHARE = 0.08
_BACKGROUND_JITTER = 5


def sample_scene(
    library: SpriteLibrary,
    *,
    seed: int,
    index: int,
    resolution: Resolution,
    split: str = "train",
    skill: str | None = None,
) -> Scene:
    """Scene number `index` of the endless series `seed`: the same arguments, the same scene.

    What is drawn does not depend on the resolution, only where it lies does.

    Args:
        seed: names the series, not negative.
        index: place in the series, not negative.
        split: which pictures may be used, one of `petzval.data.sprites.SPLITS`.
        skill: one of `SKILL_WEIGHTS`; None draws one by weight among those the split can show.

    Raises:
        DataError: an argument is out of range, or the library has no picture for it.
    """
    if seed < 0 or index < 0:
        raise DataError(f"seed {seed} and index {index} must not be negative")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index))))
    possible = possible_skills(library, split)
    if skill is None:
        weights = np.array([SKILL_WEIGHTS[name] for name in possible])
        skill = possible[int(rng.choice(len(possible), p=weights / weights.sum()))]
    elif skill not in possible:
        raise DataError(
            f"no scene of skill {skill!r} can be made in the split {split!r}",
            f"skills of this split: {', '.join(possible)}",
        )
    draft = _SAMPLERS[skill](library, rng, split, resolution)
    return Scene(
        seed=seed, index=index, split=split, skill=skill, resolution=resolution,
        background=draft.background, style=draft.style, objects=draft.objects,
        relation=draft.relation, word=draft.word, traits=draft.traits,
    )  # fmt: skip


def possible_skills(library: SpriteLibrary, split: str) -> tuple[str, ...]:
    """The skills that this library has pictures for in `split`."""
    needs = {
        "single": ("picture",), "position": ("object",), "colour": ("silhouette",),
        "two": ("object",), "count": ("object",), "portrait": ("portrait",), "word": (),
    }  # fmt: skip
    return tuple(
        skill for skill, kinds in needs.items()
        if all(library.has(split, kind) for kind in kinds)
        and (skill != "word" or split in {"train", "trained_styles"})
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    background: Background
    style: str
    objects: tuple[SceneObject, ...]
    relation: str = ""
    word: RenderedWord | None = None
    traits: tuple[str, ...] = ()


def _single(
    library: SpriteLibrary, rng: np.random.Generator, split: str, resolution: Resolution
) -> _Draft:
    sprite = _draw_sprite(library.choices(split, "picture"), rng)
    background = _draw_background(rng, sprite.colour)
    large = rng.random() < 0.88
    size = rng.uniform(0.66, 0.92) if large else rng.uniform(0.3, 0.42)
    box = place_single(resolution, sprite.box, size, (1, 1), rng.uniform(-1, 1, 2))
    return _Draft(
        background=background, style=sprite.style,
        objects=(_object(library, sprite, box, resolution),),
    )  # fmt: skip


def _position(
    library: SpriteLibrary, rng: np.random.Generator, split: str, resolution: Resolution
) -> _Draft:
    sprite = _draw_sprite(library.choices(split, "object"), rng)
    background = _draw_background(rng, sprite.colour)
    cell = (int(rng.integers(3)), int(rng.integers(3)))
    size = rng.uniform(0.34, 0.46)
    box = place_single(resolution, sprite.box, size, cell, rng.uniform(-1, 1, 2))
    return _Draft(
        background=background, style=sprite.style,
        objects=(_object(library, sprite, box, resolution),),
    )  # fmt: skip


def _colour(
    library: SpriteLibrary, rng: np.random.Generator, split: str, resolution: Resolution
) -> _Draft:
    shapes = library.has(split, "shape") and rng.random() < 0.5
    sprite = _draw_sprite(library.choices(split, "shape" if shapes else "silhouette"), rng)
    background = _draw_background(rng, None)
    fitting = [c for c in OBJECT_COLOURS if not any(clash(c, b) for b in background.colours)]
    colour = fitting[int(rng.integers(len(fitting)))]
    box = place_single(
        resolution, sprite.box, rng.uniform(0.55, 0.9), (1, 1), rng.uniform(-1, 1, 2)
    )
    return _Draft(
        background=background, style=sprite.style,
        objects=(_object(library, sprite, box, resolution, paint=colour),),
    )  # fmt: skip


def _two(
    library: SpriteLibrary, rng: np.random.Generator, split: str, resolution: Resolution
) -> _Draft:
    choices = library.choices(split, "object")
    first = _draw_sprite(choices, rng)
    second = _draw_sprite(choices, rng, style=first.style, other_than=first)
    background = _draw_background(rng, first.colour, second.colour)
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
    boxes = place_pair(
        resolution, (first.box, second.box), relation, rng.uniform(0.86, 1, 2),
        rng.uniform(-1, 1, (2, 2)),
    )  # fmt: skip
    return _Draft(
        background=background, style=first.style, relation=relation,
        objects=tuple(
            _object(library, sprite, box, resolution)
            for sprite, box in zip((first, second), boxes, strict=True)
        ),
    )  # fmt: skip


def _count(
    library: SpriteLibrary, rng: np.random.Generator, split: str, resolution: Resolution
) -> _Draft:
    sprite = _draw_sprite(library.choices(split, "object"), rng)
    background = _draw_background(rng, sprite.colour)
    count = 1 + int(rng.choice(5, p=_COUNT_WEIGHTS))
    boxes = place_count(
        resolution, sprite.box, count, rng.uniform(0.74, 0.92), rng.uniform(-1, 1, (5, 2))
    )
    return _Draft(
        background=background, style=sprite.style,
        objects=tuple(_object(library, sprite, box, resolution) for box in boxes),
    )  # fmt: skip


def _portrait(
    library: SpriteLibrary, rng: np.random.Generator, split: str, resolution: Resolution
) -> _Draft:
    sprite = _draw_sprite(library.choices(split, "portrait"), rng)
    background = _draw_background(rng, None)
    box = place_single(
        resolution, sprite.box, rng.uniform(0.82, 0.98), (2, 1), rng.uniform(-1, 1, 2), margin=0.0
    )
    return _Draft(
        background=background, style=sprite.style, traits=sprite.traits,
        objects=(_object(library, sprite, box, resolution),),
    )  # fmt: skip


def _word(
    library: SpriteLibrary, rng: np.random.Generator, split: str, resolution: Resolution
) -> _Draft:
    del library, split
    text = WORDS[int(rng.integers(len(WORDS)))]
    background = _draw_background(rng, None)
    fitting = [c for c in OBJECT_COLOURS if not any(clash(c, b) for b in background.colours)]
    colour = fitting[int(rng.integers(len(fitting)))]
    box = place_word(resolution, len(text), rng.uniform(0.75, 0.92), rng.uniform(-1, 1, 2))
    word = RenderedWord(text=text, colour=colour, box=box)
    return _Draft(background=background, style="", objects=(), word=word)


_SAMPLERS = {
    "single": _single, "position": _position, "colour": _colour, "two": _two, "count": _count,
    "portrait": _portrait, "word": _word,
}  # fmt: skip


def _draw_background(rng: np.random.Generator, *colours: str | None) -> Background:
    """A background, each plain colour as likely, on which things of `colours` can be seen."""
    present = [colour for colour in colours if colour is not None]
    names = tuple(BACKGROUND_COLOURS)
    gradient = rng.random() < _GRADIENT_SHARE
    background: tuple[str, ...] = ()
    for _ in range(12):
        if gradient:
            background = GRADIENTS[int(rng.integers(len(GRADIENTS)))]
        else:
            background = (names[int(rng.integers(len(names)))],)
        if not any(clash(c, b) for c in present for b in background):
            break
    jitter = rng.integers(-_BACKGROUND_JITTER, _BACKGROUND_JITTER + 1, (2, 3))
    rgb = tuple(
        tuple(int(v) for v in np.clip(np.add(BACKGROUND_COLOURS[name], shift), 0, 255))
        for name, shift in zip(background, jitter, strict=False)
    )
    direction = "" if not gradient else "vertical" if rng.random() < 0.7 else "horizontal"
    return Background(
        colours=background, rgb=tuple((c[0], c[1], c[2]) for c in rgb), direction=direction
    )


def _draw_sprite(
    choices: Choices,
    rng: np.random.Generator,
    *,
    style: str = "",
    other_than: Sprite | None = None,
) -> Sprite:
    """A concept by weight, then one of its pictures by style; in `style` where it can be."""
    usable: tuple[Sprite, ...] = ()
    for _ in range(20):
        usable = choices.sprites[choices.draw(rng)]
        if other_than is not None and usable[0].concept == other_than.concept:
            continue
        matching = tuple(sprite for sprite in usable if sprite.style == style)
        if not style or matching:
            usable = matching or usable
            break
    weights = np.array([STYLE_WEIGHTS.get(sprite.style, 1.0) for sprite in usable])
    return usable[int(rng.choice(len(usable), p=weights / weights.sum()))]


def _object(
    library: SpriteLibrary, sprite: Sprite, box: Box, resolution: Resolution, *, paint: str = ""
) -> SceneObject:
    share = max(box.height, box.width) / min(resolution.height, resolution.width)
    row = int(3 * (box.top + box.height / 2) / resolution.height)
    column = int(3 * (box.left + box.width / 2) / resolution.width)
    return SceneObject(
        concept=sprite.concept,
        names=library.concepts[sprite.concept].names,
        sprite=sprite.index,
        box=box,
        colour=paint or sprite.colour,
        painted=bool(paint),
        size="small" if share < 0.48 else "medium" if share < 0.64 else "large",
        cell=(min(max(row, 0), 2), min(max(column, 0), 2)),
    )
