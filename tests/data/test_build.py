"""The build: each stage once, again when its inputs change, and from where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petzval.data import assets, build
from petzval.data.build import build_mini, write_prompt_concepts
from petzval.data.concepts import Concept
from petzval.data.packages import PACKAGES
from petzval.data.pictures import Picture, clipart_pictures
from petzval.data.sprites import SpriteLibrary
from petzval.errors import DataError
from tests.data.small_library import png, small_concepts, small_pictures

Calls = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Stages that were run; the small library stands in for the fetched one."""
    done: Calls = []

    def fetch(cache: Path, **_: object) -> None:
        done.append("fetch")

    def gather(cache: Path, *, num_portraits: int) -> tuple[list[Picture], dict[str, Concept]]:
        done.append(f"gather {num_portraits}")
        return small_pictures(), small_concepts()

    monkeypatch.setattr(assets, "fetch", fetch)
    monkeypatch.setattr(build, "gather", gather)
    monkeypatch.setattr(build, "OPENCLIPART_FOLDER", tmp_path / "no-clip-art")
    return done


def test_a_second_build_does_nothing(tmp_path: Path, calls: Calls) -> None:
    first = build_mini(tmp_path / "mini", num_processes=1, num_portraits=5)
    second = build_mini(tmp_path / "mini", num_processes=1, num_portraits=5)
    assert calls == ["fetch", "gather 5"]
    assert first.sprites == second.sprites
    licences = json.loads((tmp_path / "mini" / "licences.json").read_text())
    assert list(licences["optional"].values()) == ["not present"]
    assert len(licences["packages"]) == len(PACKAGES)


def test_other_settings_draw_again_but_do_not_fetch_again(tmp_path: Path, calls: Calls) -> None:
    build_mini(tmp_path, num_processes=1, num_portraits=5)
    build_mini(tmp_path, num_processes=1, num_portraits=10)
    assert calls == ["fetch", "gather 5", "gather 10"]


def test_an_interrupted_build_goes_on(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = build.gather

    def interrupted(cache: Path, *, num_portraits: int) -> tuple[list[Picture], dict[str, Concept]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_mini(tmp_path, num_processes=1)
    with pytest.raises(DataError, match="holds no sprite library"):
        SpriteLibrary.open(tmp_path)
    monkeypatch.setattr(build, "gather", gather)
    assert len(build_mini(tmp_path, num_processes=1)) == len(small_pictures())
    assert calls == ["fetch", "gather 2000"]


def test_prompt_concepts_are_the_plain_ones_with_all_names(
    tmp_path: Path, library: SpriteLibrary
) -> None:
    path = tmp_path / "prompt_concepts.json"
    write_prompt_concepts(library, path)
    rows = json.loads(path.read_text())
    assert [row["id"] for row in rows] == sorted(
        ["cat", "dog", "red-apple", "star", "lion", "penguin", "cactus"]
    )
    assert all(row["silhouette"] and len(row["names"]) == 12 for row in rows)


def test_clip_art_is_taken_by_name_from_the_folders_of_things(tmp_path: Path) -> None:
    for path in ("animals/cat-2.png", "animals/zzz.png", "computer/dog.png", "food/red_apple.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(png((1, 2, 3)))
    (tmp_path / "animals" / "dog.png").symlink_to(tmp_path / "animals" / "cat-2.png")
    found = {p.concept: p for p in clipart_pictures(small_concepts(), tmp_path)}
    assert set(found) == {"cat", "red-apple"}
    assert found["cat"].licence == "Public-Domain" and found["cat"].draw() is not None
    assert list(clipart_pictures(small_concepts(), tmp_path / "nowhere")) == []
