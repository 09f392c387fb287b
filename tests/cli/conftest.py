from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from petzval.cli.main import main

Run: TypeAlias = Callable[..., tuple[int, str, str]]
"""Words of a command → (exit code, stdout, stderr)."""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in an empty folder, with no models on the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PETZVAL_MODELS", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no_cache"))
    monkeypatch.setenv("COLUMNS", "100")

    def command(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return command
