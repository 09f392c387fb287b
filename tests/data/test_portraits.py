"""Portraits: parameters become words, and a missing node says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

from petzval.data.portraits import STYLES, draw_portraits, traits
from petzval.errors import DataError
from tests.data.archives import write_archive


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, ()),
        (
            {"hair": "shortCombover", "hairColor": "#724133", "eyes": "sunglasses"},
            ("short brown hair", "sunglasses"),
        ),
        (
            {"hair": "long05", "hairColor": "#000000", "glasses": "variant01"},
            ("long black hair", "glasses"),
        ),
        ({"hair": "bald", "facialHair": "walrus"}, ("a bald head", "a moustache")),
        ({"hair": "cap", "clothingColor": "#f97f06"}, ("a cap", "an orange top")),
        ({"head": "mediumBangs", "beard": "fullBeard"}, ("medium-length hair", "a beard")),
        ({"hair": "bun", "hairColor": "not a colour"}, ("hair in a bun",)),
    ],
)
def test_parameters_become_words(extra: dict[str, object], expected: tuple[str, ...]) -> None:
    assert traits(extra) == expected


def test_a_missing_node_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("core", *STYLES):
        write_archive(tmp_path, f"@dicebear/{name}", {"package.json": {}})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="node is not installed") as caught:
        list(draw_portraits(tmp_path, num_per_style=1))
    assert "Node" in caught.value.hint
    unpacked = tmp_path / "portraits" / "node_modules" / "@dicebear" / "core" / "package.json"
    assert unpacked.read_text() == "{}"
