"""The house stands as it is drawn: rooms, layers, sizes, words."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from petzval.models.latents import patchify
from tests.contract.tree import (
    PACKAGE,
    REPOSITORY,
    layers,
    parsed,
    rooms,
    source_files,
    tracked_files,
)

MAX_LINES = 450


@pytest.mark.skipif(os.environ.get("PETZVAL_SHAPES") == "0", reason="shapes are not checked")
def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError, match="patchify"):
        patchify(torch.zeros(3, 8))


def test_imports_run_down_the_house() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program), "--no-cache"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def test_every_room_is_on_a_floor_and_every_floor_has_its_rooms() -> None:
    drawn = [room for layer in layers() for room in layer]
    assert sorted(drawn) == sorted(rooms())


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_says_its_one_purpose_in_its_first_line(room: str) -> None:
    docstring = ast.get_docstring(parsed(rooms()[room]))
    assert docstring, f"{room} has no docstring"
    first = docstring.splitlines()[0]
    assert len(first) > 20, f"{room}: {first!r} says too little"
    assert first[-1] in ".:", f"{room}: the first line must be a whole sentence: {first!r}"


def test_a_folder_of_code_is_a_room_and_not_a_loose_folder() -> None:
    loose = {path.parent for path in source_files()} - {
        path.parent for path in source_files() if path.name == "__init__.py"
    }
    assert not loose


def test_a_file_can_be_read_in_one_sitting() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    long = {str(p.relative_to(PACKAGE)): n for p, n in lengths.items() if n > MAX_LINES}
    assert not long, "give one of its nouns a file"


def _methods(tree: ast.Module) -> list[tuple[str, ast.FunctionDef]]:
    return [
        (node.name, member)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for member in node.body
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
    ]


def _undocumented(path: Path) -> list[str]:
    """Public modules, functions, classes and methods without a docstring.

    A module's `forward` needs none, nor does a method that another class of the file documents:
    the protocol or the base that it fills in.
    """
    tree = parsed(path)
    found = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found += [] if ast.get_docstring(node) else [node.name]
    methods = _methods(tree)
    explained = {method.name for _, method in methods if ast.get_docstring(method)} | {"forward"}
    return found + [f"{owner}.{m.name}" for owner, m in methods if m.name not in explained]


def test_every_public_name_is_documented() -> None:
    missing = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in source_files()
        for name in _undocumented(path)
    ]
    assert not missing


def _text_files() -> list[Path]:
    suffixes = {".py", ".pyi", ".md", ".toml", ".txt", ".json", ".jsonl", ".yml", ".cfg", ""}
    own = Path(__file__).resolve()
    return [path for path in tracked_files() if path.suffix in suffixes and path != own]


FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.])/(work|root|home/\w+|tmp/(plan|x))/"),
    "a folder outside the repository": re.compile(r"\.\./shared|shared/(lens|goldens|guides)"),
    "unfinished work": re.compile(r"\b(TODO|FIXME|XXX)\b"),
    "a merge conflict": re.compile(r"^(<{7}|>{7}) ", re.MULTILINE),
}


@pytest.mark.parametrize("what", sorted(FORBIDDEN))
def test_no_file_contains(what: str) -> None:
    hits: list[str] = []
    for path in _text_files():
        text = path.read_text(encoding="utf-8")
        hits += [
            f"{path.relative_to(REPOSITORY)}:{text.count(chr(10), 0, match.start()) + 1}"
            for match in FORBIDDEN[what].finditer(text)
        ]
    assert not hits
    assert len(_text_files()) > 50, "the files under version control were not found"
