"""Fetching: only the pinned bytes are taken, and every failure says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petzval.data import assets
from petzval.data.assets import check_archive, fetch, read_json, write_licences
from petzval.data.packages import PACKAGES, package
from petzval.errors import DataError


def test_every_package_is_pinned_and_credited() -> None:
    assert len({pinned.name for pinned in PACKAGES}) == len(PACKAGES)
    for pinned in PACKAGES:
        assert len(pinned.sha256) == 64 and int(pinned.sha256, 16)
        assert pinned.licence and pinned.author and pinned.title
        assert pinned.use in {"train", "evaluate", "names"}
    assert len({pinned.sha256 for pinned in PACKAGES}) == len(PACKAGES)


def test_share_alike_art_is_for_evaluation_only() -> None:
    assert [p.name for p in PACKAGES if "SA" in p.licence] == ["openmoji"]
    assert package("openmoji").use == "evaluate"


def test_another_archive_is_refused(tmp_path: Path) -> None:
    pinned = package("openmoji")
    path = tmp_path / pinned.archive
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match="is not openmoji 17.0.0") as caught:
        check_archive(path, pinned)
    assert "delete" in caught.value.hint
    with pytest.raises(DataError, match="missing"):
        check_archive(tmp_path / "nothing", pinned)


def test_without_npm_the_hint_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is not installed") as caught:
        fetch(tmp_path / "cache")
    assert "Node" in caught.value.hint


def test_a_failing_npm_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match=r"npm could not fetch @lobehub/fluent-emoji-3d@1\.1\.0"):
        fetch(tmp_path / "cache")


def test_archives_that_are_there_are_checked_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(assets, "_npm_pack", lambda pinned, cache: seen.append(pinned.name))
    monkeypatch.setattr(assets, "check_archive", lambda path, pinned: None)
    (tmp_path / PACKAGES[0].archive).write_bytes(b"")
    reports: list[tuple[str, int, int]] = []
    fetch(tmp_path, progress=lambda *report: reports.append(report))
    assert seen == [pinned.name for pinned in PACKAGES[1:]]
    assert reports[-1] == ("fetch", len(PACKAGES), len(PACKAGES))


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / package("openmoji").archive).write_bytes(b"\x1f\x8b cut short")
    with pytest.raises(DataError, match="openmoji"):
        read_json(tmp_path, "openmoji", "x.json")


def test_an_unknown_set_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="'emoji-nine'") as caught:
        package("emoji-nine")
    assert "openmoji" in caught.value.hint


def test_licences_list_all_works_and_what_is_not_there(tmp_path: Path) -> None:
    write_licences(tmp_path, {"Clip art": "not present"})
    table = json.loads((tmp_path / "licences.json").read_text())
    assert [row["name"] for row in table["packages"]] == [pinned.name for pinned in PACKAGES]
    notice = (tmp_path / "NOTICE").read_text()
    assert "Twemoji, by Twitter and contributors. CC-BY-4.0." in notice
    assert "Clip art: not present." in notice
