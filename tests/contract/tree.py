"""What the contract tests look at: the files of the repository, parsed once."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "petzval"


@cache
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def source_files() -> tuple[Path, ...]:
    """Every Python file of the package."""
    return tuple(sorted(PACKAGE.rglob("*.py")))


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def rooms() -> dict[str, Path]:
    """Room → the file whose docstring says what it is for: a folder's __init__, or the module."""
    folders = {p.parent.name: p for p in PACKAGE.glob("*/__init__.py")}
    modules = {p.stem: p for p in PACKAGE.glob("*.py") if not p.stem.startswith("__")}
    return dict(sorted({**folders, **modules}.items()))


def layers() -> list[list[str]]:
    """The house from top to bottom, as the import contract in pyproject.toml states it."""
    contracts = project()["tool"]["importlinter"]["contracts"]
    house = next(contract for contract in contracts if contract["type"] == "layers")
    return [[room.strip(" ()") for room in layer.split("|")] for layer in house["layers"]]


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file under version control that still exists here; none where there is no git."""
    command = ["git", "ls-files", "-z"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    paths = (REPOSITORY / name for name in run.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file())
