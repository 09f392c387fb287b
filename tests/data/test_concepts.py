"""Concepts: names, and a split that never moves and never leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petzval.data.concepts import (
    Concept,
    bare,
    from_hex,
    icon_concept,
    is_held_out,
    load_concepts,
    natural_name,
    read_concepts,
    slug,
    write_concepts,
)
from petzval.data.core_names import CORE_NAMES, NO_ARTICLE, SHAPES
from petzval.data.languages import LANGUAGES
from petzval.errors import DataError
from tests.data.archives import write_archive


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one o’clock", "one-oclock"),
        ("piñata", "pinata"),
        ("flag: Bosnia & Herzegovina", "flag-bosnia-and-herzegovina"),
        ("T-Rex", "t-rex"),
        ("…", ""),
    ],
)
def test_slugs_are_plain_ascii(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flag: Japan", "flag of Japan"),
        ("man: red hair", "man with red hair"),
        ("person walking: facing right", "person walking facing right"),
        ("one o’clock", "clock showing one o'clock"),
        ("automobile", "car"),
        ("cat", "cat"),
    ],
)
def test_names_become_what_people_say(name: str, expected: str) -> None:
    assert natural_name(name) == expected


def test_the_split_holds_out_about_one_in_ten_and_never_moves() -> None:
    share = sum(is_held_out(f"thing {number}") for number in range(5000)) / 5000
    assert 0.08 < share < 0.12
    # The published split: these may never change sides.
    assert all(map(is_held_out, ("lion", "panda", "penguin", "frog", "cactus", "guitar")))
    assert not any(map(is_held_out, ("cat", "dog", "red apple", "star", "house", "rocket")))


def test_a_thing_and_its_face_are_on_the_same_side() -> None:
    for number in range(300):
        assert is_held_out(f"beast {number}") == is_held_out(f"beast {number} face")


def test_plain_concepts_are_held_out_too() -> None:
    held_out = [name for name in CORE_NAMES if is_held_out(name)]
    assert 0.05 * len(CORE_NAMES) < len(held_out) < 0.2 * len(CORE_NAMES)
    assert [name for name in SHAPES if is_held_out(name)] == ["diamond shape"]


def test_word_lists_have_no_stray_spaces_and_no_doubles() -> None:
    assert all(name == name.strip() and name for name in (*CORE_NAMES, *NO_ARTICLE))
    assert len(set(CORE_NAMES)) == len(CORE_NAMES)


def test_an_icon_with_a_held_out_name_inside_is_held_out() -> None:
    held_out = frozenset({"lion", "palm-tree"})
    assert icon_concept("lion-mask", held_out).held_out
    assert icon_concept("tall-palm-tree", held_out).held_out
    assert not icon_concept("dandelion", held_out).held_out


def test_sequences_are_joined_without_variation_selectors() -> None:
    assert from_hex("2764-FE0F") == "\u2764" == bare("\u2764\ufe0f")
    assert from_hex("readme") == from_hex("") == from_hex("110000000") == ""


def test_concepts_come_back_as_they_were_written(tmp_path: Path) -> None:
    concept = Concept(
        id="cat", name="cat", names={"en": "cat", "ja": "ネコ"}, keywords={"en": ("pet",)},
        group="animals-nature", held_out=False, core=True, weight=2.5,
    )  # fmt: skip
    write_concepts(tmp_path / "concepts.jsonl", {"cat": concept})
    assert load_concepts(tmp_path / "concepts.jsonl") == {"cat": concept}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"id": "x"}',
        '{"id": "x", "keywords": 3}',
        "null",
        '{"id": "x", "name": "x", "keywords": {}, "group": "g", "held_out": false}',
        '{"id": "x", "name": "x", "names": {"en": "x"}, "keywords": {}, "group": "g",'
        ' "held_out": false, "weight": "heavy"}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "concepts.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=r"concepts\.jsonl line 1") as caught:
        load_concepts(path)
    assert "petzval data build" in caught.value.hint


def _entry(hexcode: str, subgroup: int) -> dict[str, Any]:
    return {"hexcode": hexcode, "group": 3, "subgroup": subgroup}


def test_concepts_are_read_from_the_name_packages(tmp_path: Path) -> None:
    entries = [
        _entry("1F431", 34),  # cat face
        _entry("1F44B-1F3FB", 34),  # has a skin tone
        _entry("0023-20E3", 92),  # keycap
        _entry("1F99D", 34),  # has no name below
    ]
    levels = {
        "groups": {"3": "animals-nature"},
        "subgroups": {"34": "animal-mammal", "92": "keycap"},
    }
    write_archive(tmp_path, "emojibase-data", {"en/data.json": entries, "meta/groups.json": levels})
    for name, key in (
        ("cldr-annotations-full", "annotations"),
        ("cldr-annotations-derived-full", "annotationsDerived"),
    ):
        tables = {
            f"{key}/{language}/annotations.json": {
                key: {
                    "annotations": {
                        "🐱": {"tts": ["cat face" if language == "en" else f"cat {language}"]},
                        "👋🏻": {"tts": ["waving hand: light skin tone"]},
                        "#⃣": {"tts": ["keycap: #"]},
                    }
                }
            }
            for language in LANGUAGES
        }
        write_archive(tmp_path, name, tables)
    concepts, by_sequence = read_concepts(tmp_path)
    assert by_sequence == {"🐱": "cat-face"}
    assert set(concepts) == {"cat-face", *map(slug, SHAPES)}
    assert concepts["cat-face"].names["ja"] == "cat ja"
    assert concepts["cat-face"].core
    assert set(concepts["circle"].names) == set(LANGUAGES)
