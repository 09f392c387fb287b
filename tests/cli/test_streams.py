"""Streams that are closed, full, or read by somebody who goes away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from petzval.inference.image import encode
from tests.inference.test_image import RECIPE, a_picture

PETZVAL = f"{sys.executable} -m petzval"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture with a recipe."""
    path = tmp_path / "fox.png"
    path.write_bytes(encode(a_picture().pil(), RECIPE, "png"))
    return path


def _shell(command: str) -> tuple[int, str]:
    """Exit code and stderr of a line for a shell."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=540)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("generate <&-", "no prompt"),
        ("generate - <&-", "stdin is closed"),
        ("generate fox --out - >&-", "stdout is closed"),
        ("doctor --json > /dev/full", "stdout: No space left"),
        ("models > /dev/full", "stdout: No space left"),
    ],
)
def test_a_stream_that_cannot_serve_is_a_users_mistake(words: str, message: str) -> None:
    code, err = _shell(f"{PETZVAL} {words}")
    assert (code, "Traceback" in err, "hint: " in err) == (2, False, True)
    assert message in err


def test_a_full_disk_behind_stdout_is_answered(picture: Path) -> None:
    code, err = _shell(f"{PETZVAL} show {picture} > /dev/full")
    assert code == 2
    assert err.startswith("error: the results cannot be written to stdout: No space left")
    assert err.count("\n") == 2  # nothing from Python, which empties its buffers at its end


def test_a_full_disk_behind_the_folder_that_data_prints_is_answered(tmp_path: Path) -> None:
    words = f"data text {tmp_path / 'texts'} --num 1 --base 128"
    code, err = _shell(f"{PETZVAL} {words} > /dev/full")
    assert (code, "Traceback" in err) == (2, False)
    assert "error: the results cannot be written to stdout: No space left" in err


def test_a_reader_that_goes_away_ends_the_work_quietly(picture: Path) -> None:
    line = f"{{ sleep 0.1; {PETZVAL} show {picture}; echo $? >&2; }} | true"
    assert _shell(f"{line}; wait") == (0, "141\n")
