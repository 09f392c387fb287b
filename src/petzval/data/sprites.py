"""The sprite library: every picture, drawn once, in one memory-mapped array."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petzval.data.assets import Progress
from petzval.data.concepts import Concept, load_concepts, write_concepts
from petzval.data.palette import dominant_colour
from petzval.data.pictures import HELD_OUT_STYLES, Picture
from petzval.data.rasterise import SPRITE_SIZE, Pixels, unpremultiply, visible_box
from petzval.errors import DataError

FORMAT = 1
_BYTES = SPRITE_SIZE * SPRITE_SIZE * 4
_HINT = "run: petzval data build mini"

SPLITS: Mapping[str, tuple[frozenset[bool], frozenset[bool]]] = {
    "train": (frozenset({False}), frozenset({False})),
    "held_out_concepts": (frozenset({True}), frozenset({False})),
    "held_out_styles": (frozenset({False}), frozenset({True})),
    "held_out_both": (frozenset({True}), frozenset({True})),
    "trained_styles": (frozenset({False, True}), frozenset({False})),
}
"""Split -> (allowed `concept_held_out`, allowed `style_held_out`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """What is known of one picture.

    Attributes:
        index: its place in the array.
        concept: id of what it shows.
        style: drawing style, the same for a whole set.
        source: package it came from; `key` is its name there.
        licence: SPDX identifier.
        kind: "picture", "mask" (white, to be painted) or "portrait".
        colour: name of the colour of at least 30 % of it, if there is one.
        box: (top, left, height, width) of what is visible, in pixels of the 160 x 160 square.
        group: broad class of its concept.
        concept_held_out, style_held_out: which side of the two splits it is on.
        traits: words about a portrait.
    """

    index: int
    concept: str
    style: str
    source: str
    key: str
    licence: str
    kind: str
    colour: str | None
    box: tuple[int, int, int, int]
    group: str
    concept_held_out: bool
    style_held_out: bool
    traits: tuple[str, ...] = field(default=())

    def in_split(self, split: str) -> bool:
        """Whether this picture may be used in `split`."""
        concepts, styles = SPLITS[split]
        return self.concept_held_out in concepts and self.style_held_out in styles


class SpriteLibrary:
    """All pictures and concepts of a built folder, opened without reading the pictures.

    Args:
        concepts: concepts by id.
        sprites: what is known of each picture, in order of index.
        pixels: [num_sprites, 160, 160, 4] premultiplied RGBA, possibly memory-mapped.
    """

    def __init__(
        self, concepts: Mapping[str, Concept], sprites: Sequence[Sprite], pixels: NDArray[np.uint8]
    ) -> None:
        self.concepts = concepts
        self.sprites = sprites
        self._pixels = pixels

    @classmethod
    def open(cls, folder: str | Path) -> SpriteLibrary:
        """Open a folder written by `build_mini`.

        Raises:
            DataError: the folder or a file is missing, damaged, cut short or of another format.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder / "library.json")
        concepts = load_concepts(folder / "concepts.jsonl")
        sprites = _load_sprites(folder / "sprites.jsonl")
        if len(sprites) != manifest["num_sprites"]:
            raise DataError(
                f"{folder / 'sprites.jsonl'} lists {len(sprites)} pictures, "
                f"library.json promises {manifest['num_sprites']}",
                _HINT,
            )
        unknown = {sprite.concept for sprite in sprites} - concepts.keys()
        if unknown:
            raise DataError(
                f"{folder / 'concepts.jsonl'} does not know {sorted(unknown)[0]!r}", _HINT
            )
        path = folder / "sprites.u8"
        size = path.stat().st_size if path.is_file() else -1
        if size != len(sprites) * _BYTES:
            raise DataError(
                f"{path} has {max(size, 0)} bytes, expected {len(sprites) * _BYTES}", _HINT
            )
        shape = (len(sprites), SPRITE_SIZE, SPRITE_SIZE, 4)
        return cls(concepts, sprites, np.memmap(path, np.uint8, "r", shape=shape))

    def __len__(self) -> int:
        return len(self.sprites)

    def pixels(self, index: int) -> Pixels:
        """Premultiplied RGBA of one picture, uint8 [160, 160, 4], read only."""
        return self._pixels[index]

    @cached_property
    def by_concept(self) -> Mapping[str, tuple[Sprite, ...]]:
        """Pictures of each concept, in order of index."""
        table: dict[str, list[Sprite]] = {}
        for sprite in self.sprites:
            table.setdefault(sprite.concept, []).append(sprite)
        return {concept: tuple(rows) for concept, rows in table.items()}

    @cached_property
    def name_table(self) -> NameTable:
        """All concepts, held out or not, weighted for learning their names."""
        concepts = tuple(self.concepts[key] for key in sorted(self.concepts))
        usual = {"icons": 0.25, "flags": 0.25}
        weights = [3.0 if c.core else usual.get(c.group, 1.0) for c in concepts]
        return NameTable(concepts=concepts, cumulative=np.cumsum(weights))

    @cached_property
    def _choices(self) -> dict[tuple[str, str], Choices]:
        return {}

    def has(self, split: str, kind: str) -> bool:
        """Whether there is any picture of `kind` in `split`."""
        return bool(self._gathered(split, kind).concepts)

    def choices(self, split: str, kind: str) -> Choices:
        """The weighted concepts and pictures of one kind in a split; see `Choices`.

        Raises:
            DataError: the split is unknown, or this library has no such picture.
        """
        choices = self._gathered(split, kind)
        if not choices.concepts:
            raise DataError(f"the library has no {kind} in the split {split!r}", _HINT)
        return choices

    def _gathered(self, split: str, kind: str) -> Choices:
        if split not in SPLITS:
            raise DataError(f"unknown split {split!r}", f"splits: {', '.join(SPLITS)}")
        key = (split, kind)
        if key not in self._choices:
            self._choices[key] = Choices.gather(self, split, kind)
        return self._choices[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class NameTable:
    """Concepts with cumulative weights."""

    concepts: tuple[Concept, ...]
    cumulative: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What can be drawn: concepts with cumulative weights, and the pictures of each by style."""

    concepts: tuple[str, ...]
    cumulative: NDArray[np.float64]
    sprites: tuple[tuple[Sprite, ...], ...]

    @classmethod
    def gather(cls, library: SpriteLibrary, split: str, kind: str) -> Choices:
        """Concepts that have a picture of `kind` in `split`; there may be none.

        Kinds: "picture", "object" (a picture of a thing that can be told apart when small),
        "shape" and "silhouette" (masks to be painted), "portrait".
        """
        rows: list[tuple[str, float, tuple[Sprite, ...]]] = []
        for concept_id, sprites in library.by_concept.items():
            concept = library.concepts[concept_id]
            if kind == "object" and concept.group in {"flags", "symbols", "people-body"}:
                continue
            usable = tuple(s for s in sprites if _is_kind(s, kind) and s.in_split(split))
            if usable:
                rows.append((concept_id, max(concept.weight, 0.01), usable))
        return cls(
            concepts=tuple(row[0] for row in rows),
            cumulative=np.cumsum([row[1] for row in rows]),
            sprites=tuple(row[2] for row in rows),
        )

    def draw(self, rng: np.random.Generator) -> int:
        """Position of a concept, drawn by weight."""
        point = rng.random() * self.cumulative[-1]
        return min(int(np.searchsorted(self.cumulative, point, "right")), len(self.concepts) - 1)


def _is_kind(sprite: Sprite, kind: str) -> bool:
    if kind in {"shape", "silhouette"}:
        return sprite.kind == "mask" and sprite.style == kind
    return sprite.kind == ("picture" if kind == "object" else kind)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT and isinstance(manifest["num_sprites"], int):
            return manifest
    except FileNotFoundError as error:
        raise DataError(f"{path.parent} holds no sprite library", _HINT) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}", _HINT) from error
    raise DataError(f"{path} is of another format than {FORMAT}", _HINT)


def _load_sprites(path: Path) -> list[Sprite]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", _HINT) from error
    sprites: list[Sprite] = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            row["box"], row["traits"] = tuple(row["box"]), tuple(row["traits"])
            sprite = Sprite(**row)
            if sprite.index != number:
                raise ValueError(f"index {sprite.index}")
            top, left, height, width = sprite.box
            inside = min(top, left) >= 0 and max(top + height, left + width) <= SPRITE_SIZE
            if not inside or min(height, width) < 1:
                raise ValueError(f"box {sprite.box}")
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} line {number + 1} is not a picture's entry: {error}", _HINT
            ) from error
        sprites.append(sprite)
    return sprites


def write_library(
    folder: Path,
    pictures: Sequence[Picture],
    concepts: Mapping[str, Concept],
    *,
    num_processes: int = 2,
    progress: Progress | None = None,
) -> int:
    """Draw all pictures into `folder`; returns how many could be drawn.

    Files appear under their final names only when they are whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "sprites.u8.partial"
    sprites: list[Sprite] = []
    with partial.open("wb") as file:
        drawn = _draw_all(pictures, num_processes)
        for done, (picture, pixels) in enumerate(drawn):
            if progress is not None and done % 100 == 0:
                progress("draw", done, len(pictures))
            if pixels is not None:
                file.write(pixels.tobytes())
                sprites.append(_describe(len(sprites), picture, pixels, concepts))
    used = {sprite.concept for sprite in sprites}
    write_concepts(folder / "concepts.jsonl", {k: c for k, c in concepts.items() if k in used})
    with (folder / "sprites.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(s), ensure_ascii=False) + "\n" for s in sprites)
    os.replace(partial, folder / "sprites.u8")
    manifest = {"format": FORMAT, "num_sprites": len(sprites), "size": SPRITE_SIZE}
    (folder / "library.json").write_text(json.dumps(manifest) + "\n")
    if progress is not None:
        progress("draw", len(pictures), len(pictures))
    return len(sprites)


def _draw(picture: Picture) -> Pixels | None:
    return picture.draw()


def _draw_all(
    pictures: Sequence[Picture], num_processes: int
) -> Iterator[tuple[Picture, Pixels | None]]:
    if num_processes <= 1:
        yield from ((picture, picture.draw()) for picture in pictures)
        return
    # Fresh processes: a fork would copy the threads' locks of whatever else is loaded.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        yield from zip(pictures, pool.map(_draw, pictures, chunksize=32), strict=True)


def _describe(
    index: int, picture: Picture, pixels: Pixels, concepts: Mapping[str, Concept]
) -> Sprite:
    concept = concepts[picture.concept]
    named = picture.kind == "picture" and concept.group not in {"flags", "people-body"}
    return Sprite(
        index=index,
        concept=picture.concept,
        style=picture.style,
        source=picture.source,
        key=picture.key,
        licence=picture.licence,
        kind=picture.kind,
        colour=dominant_colour(unpremultiply(pixels)) if named else None,
        box=visible_box(pixels),
        group=concept.group,
        concept_held_out=concept.held_out,
        style_held_out=picture.style in HELD_OUT_STYLES,
        traits=picture.traits,
    )
