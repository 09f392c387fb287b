"""For tests and for the code blocks of README and guides: shapes are checked, folders are empty."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "src"


def _modules_with_shapes() -> list[str]:
    """The modules whose functions say what shapes they take and give."""
    written = re.compile(r"^ *from (petzval\.shapes|jaxtyping) import", re.MULTILINE)
    return [
        ".".join(file.relative_to(SOURCE).with_suffix("").parts)
        for file in sorted(SOURCE.rglob("*.py"))
        if file.name != "shapes.py" and written.search(file.read_text(encoding="utf-8"))
    ]


def _check_shapes() -> None:
    """Turn shape annotations into checks of every call, in tests only.

    A check costs some microseconds, so that only these modules have it; and torch.compile cannot
    trace it, so that tests which compile run without (PETZVAL_SHAPES=0).
    """
    if os.environ.get("PETZVAL_SHAPES", "1") != "0":
        from jaxtyping import install_import_hook

        install_import_hook(_modules_with_shapes(), "beartype.beartype")


_check_shapes()


@pytest.fixture(autouse=True)
def in_an_empty_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for items of pytest-markdown-docs; tests say themselves where they write."""
    if request.node.get_closest_marker("markdown-docs") is None:
        return
    folder: Path = request.getfixturevalue("tmp_path")
    monkeypatch.chdir(folder)
