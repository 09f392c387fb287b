"""The library on disk: what was written comes back, and damage is refused with a next step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from petzval.data.rasterise import SPRITE_SIZE
from petzval.data.sprites import SPLITS, SpriteLibrary, write_library
from petzval.errors import DataError
from tests.data.small_library import OBJECTS, small_concepts, small_pictures

Damage = Callable[[Path], object]


def test_pictures_come_back_as_they_were_drawn(library: SpriteLibrary) -> None:
    pictures = small_pictures()
    assert len(library) == len(pictures)
    for sprite, picture in zip(library.sprites, pictures, strict=True):
        assert (sprite.concept, sprite.style, sprite.kind) == (
            picture.concept, picture.style, picture.kind,
        )  # fmt: skip
        drawn = picture.draw()
        assert drawn is not None and np.array_equal(library.pixels(sprite.index), drawn)
    assert library.pixels(0).shape == (SPRITE_SIZE, SPRITE_SIZE, 4)


def test_pictures_cannot_be_written_to(library: SpriteLibrary) -> None:
    with pytest.raises(ValueError, match="read-only"):
        library.pixels(0)[0, 0, 0] = 1


def test_what_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    broken = [*small_pictures()[:3]]
    object.__setattr__(broken[1], "data", b"no picture")
    reports: list[tuple[str, int, int]] = []
    num = write_library(
        tmp_path, broken, small_concepts(), num_processes=1,
        progress=lambda *report: reports.append(report),
    )  # fmt: skip
    assert num == 2 == len(SpriteLibrary.open(tmp_path))
    assert reports[-1] == ("draw", 3, 3)
    assert not (tmp_path / "sprites.u8.partial").exists()


def test_two_processes_draw_the_same(tmp_path: Path, library_folder: Path) -> None:
    write_library(tmp_path, small_pictures(), small_concepts(), num_processes=2)
    for name in ("sprites.u8", "sprites.jsonl", "concepts.jsonl", "library.json"):
        assert (tmp_path / name).read_bytes() == (library_folder / name).read_bytes()


def test_colours_are_measured_on_pictures_only(library: SpriteLibrary) -> None:
    for sprite in library.sprites:
        expected = {"fluent-3d": "red", "noto": "blue", "openmoji": "green"}.get(sprite.style)
        assert sprite.colour == expected


def test_no_picture_is_on_two_sides(library: SpriteLibrary) -> None:
    for sprite in library.sprites:
        sides = [split for split in SPLITS if sprite.in_split(split) and split != "trained_styles"]
        assert len(sides) == 1
        assert ("styles" in sides[0] or "both" in sides[0]) == (sprite.style == "openmoji")
        held_out = sprite.concept in {"lion", "penguin", "cactus"}
        assert ("concepts" in sides[0] or "both" in sides[0]) == held_out


def test_choices_keep_to_their_split(library: SpriteLibrary) -> None:
    choices = library.choices("train", "picture")
    assert sorted(choices.concepts) == ["cat", "dog", "red-apple", "star"]
    rng = np.random.default_rng(0)
    assert {choices.concepts[choices.draw(rng)] for _ in range(100)} == set(choices.concepts)
    assert set(library.choices("held_out_concepts", "object").concepts) == {
        "lion", "penguin", "cactus",
    }  # fmt: skip
    assert set(library.choices("train", "silhouette").concepts) == {
        "cat", "dog", "red-apple", "star", "oil-lamp",
    }  # fmt: skip
    assert not library.has("held_out_styles", "shape")
    with pytest.raises(DataError, match="no shape in the split"):
        library.choices("held_out_styles", "shape")
    with pytest.raises(DataError, match="unknown split 'test'") as caught:
        library.has("test", "shape")
    assert "held_out_concepts" in caught.value.hint


def test_heavier_concepts_are_drawn_more_often(library: SpriteLibrary) -> None:
    choices = library.choices("train", "silhouette")
    concepts = library.concepts
    weights = np.diff(choices.cumulative, prepend=0)
    assert weights.tolist() == [concepts[key].weight for key in choices.concepts]
    assert len(library.by_concept["cat"]) == 4 and len(OBJECTS) == 7


def test_a_missing_folder_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no sprite library") as caught:
        SpriteLibrary.open(tmp_path / "nowhere")
    assert caught.value.hint == "run: petzval data build mini"


def _cut(folder: Path) -> None:
    path = folder / "sprites.u8"
    path.write_bytes(path.read_bytes()[:-1])


def _drop_last_line(folder: Path) -> None:
    path = folder / "sprites.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def _swap_lines(folder: Path) -> None:
    path = folder / "sprites.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))


def _stretch_box(folder: Path) -> None:
    path = folder / "sprites.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    row = json.loads(first) | {"box": [0, 0, 160, 161]}
    path.write_text(json.dumps(row) + "\n" + "".join(rest))


def _forget_concept(folder: Path) -> None:
    path = folder / "concepts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "pictures cut short": (_cut, r"sprites\.u8 has \d+ bytes, expected"),
    "pictures gone": (lambda f: (f / "sprites.u8").unlink(), r"sprites\.u8 has 0 bytes"),
    "entry gone": (_drop_last_line, "lists 31 pictures, library.json promises 32"),
    "entries gone": (lambda f: (f / "sprites.jsonl").unlink(), "cannot read"),
    "entries swapped": (_swap_lines, "line 1 is not a picture's entry"),
    "box outside": (_stretch_box, "line 1 is not a picture's entry: box"),
    "entry no JSON": (
        lambda f: (f / "sprites.jsonl").write_text("{\n" * 32), "line 1 is not a picture's entry",
    ),
    "entries not text": (lambda f: (f / "sprites.jsonl").write_bytes(b"\xff\xfe"), "cannot read"),
    "concept unknown": (_forget_concept, "does not know 'cactus'"),
    "manifest no JSON": (lambda f: (f / "library.json").write_text("{"), "is damaged"),
    "manifest a list": (lambda f: (f / "library.json").write_text("[]"), "is damaged"),
    "another format": (
        lambda f: (f / "library.json").write_text(json.dumps({"format": 99, "num_sprites": 1})),
        "another format",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_with_a_next_step(
    tmp_path: Path, library_folder: Path, name: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(library_folder, folder)
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        SpriteLibrary.open(folder)
    assert "petzval data build mini" in caught.value.hint
