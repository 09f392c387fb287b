"""Code blocks of README and guides run in an empty folder: what they draw is not left here."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def in_an_empty_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for items of pytest-markdown-docs; tests say themselves where they write."""
    if request.node.get_closest_marker("markdown-docs") is None:
        return
    folder: Path = request.getfixturevalue("tmp_path")
    monkeypatch.chdir(folder)
