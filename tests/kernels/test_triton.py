"""Triton's kernels give what their references give: interpreted on a CPU, compiled on a GPU.

They run in a process of their own, because the interpreter is chosen when Triton is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAM = Path(__file__).with_name("triton_program.py")

LIMITS = {"float32": 1e-6, "bfloat16": 2e-2}
"""bfloat16: the reference rounds up to four times where a kernel rounds once."""

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed (CUDA builds of torch bring it)"
)


CHECKED = """
import runpy, sys
from jaxtyping import install_import_hook
with install_import_hook("petzval.kernels", "beartype.beartype"):
    runpy.run_path(sys.argv[2], run_name="__main__")
"""
"""Runs the program as pytest runs this package: with checks of shapes around every function."""


def _run(
    what: str, tmp_path: Path, *, checked: bool = False, **environment: str
) -> dict[str, float]:
    settings = os.environ | {
        "PYTHONPATH": str(REPOSITORY / "src"),
        "TRITON_CACHE_DIR": str(tmp_path),
        **environment,
    }
    command = [sys.executable, str(PROGRAM), what]
    if checked:
        command = [sys.executable, "-c", CHECKED, what, str(PROGRAM)]
    run = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def _assert_small(errors: dict[str, float]) -> None:
    assert len(errors) >= 30
    wrong = {name: e for name, e in errors.items() if not e <= LIMITS[name.split(", ")[-1]]}
    assert not wrong


def test_interpreted_kernels_equal_their_references(tmp_path: Path) -> None:
    _assert_small(_run("cpu", tmp_path, TRITON_INTERPRET="1"))


def test_every_kernel_compiles_for_the_cards_it_is_meant_for(tmp_path: Path) -> None:
    code = _run("compile", tmp_path)
    assert len(code) == 6 * 4 - 1
    assert all(size > 0 for size in code.values())


@pytest.mark.parametrize(("what", "interpret"), [("compile", "0"), ("cpu", "1")])
def test_checks_of_shapes_do_not_keep_triton_from_its_sources(
    what: str, interpret: str, tmp_path: Path
) -> None:
    """Else all tests on a GPU would run without these kernels, and the trial would say why."""
    found = _run(what, tmp_path, checked=True, TRITON_INTERPRET=interpret)
    assert len(found) >= 6 * 4 - 1


@pytest.mark.gpu
def test_compiled_kernels_equal_their_references(tmp_path: Path) -> None:
    _assert_small(_run("cuda", tmp_path))
