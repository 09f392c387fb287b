"""The examples run, and need nothing but the public door."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

from tests.contract.tree import REPOSITORY, parsed

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_imports_only_the_door(
    example: Path, golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in ast.walk(parsed(example)):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("petzval."), "examples use the door"
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("petzval.") for alias in node.names)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), str(golden_checkpoint)])
    runpy.run_path(str(example), run_name="__main__")
    made = list(tmp_path.iterdir())
    assert made or example.stem == "the_seed_is_the_pictures"
