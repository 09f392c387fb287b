"""Checkpoints as folders: a whole one or none, whoever looks and whenever.

    run/checkpoints/step-00001200/         whole
    run/checkpoints/.incomplete-00001300/  being written, or left by a process that died

A folder gets its name when all of its files are on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from petzval.errors import TrainingError

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""

STATE = "state.json"


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob("step-*") if (p / STATE).is_file())


def begin(folder: Path, step: int) -> Path:
    """An empty folder to write into; what attempts that died have left is gone.

    One checkpoint is written at a time, so every draft that is there belongs to a dead process.
    """
    for left in folder.glob(".incomplete-*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = folder / f".incomplete-{step:08d}"
    draft.mkdir(parents=True)
    return draft


def commit(draft: Path, step: int, description: dict[str, Any]) -> Path:
    """Complete a draft with its description, flush it to the disk, give it its name."""
    (draft / STATE).write_text(json.dumps(description, indent=1), encoding="utf-8")
    for path in [*draft.iterdir(), draft]:
        flush(path)
    target = draft.parent / f"step-{step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    flush(draft.parent)
    return target


def prune(folder: Path, keep: int, milestone_steps: int | None = None) -> None:
    """Drop all but the newest `keep` and those at multiples of `milestone_steps`."""
    for old in list_checkpoints(folder)[:-keep]:
        step = int(old.name.removeprefix("step-"))
        if milestone_steps is None or step % milestone_steps:
            shutil.rmtree(old)


def read_description(path: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint."""
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(
            f"cannot read {path / STATE}: {error}", "resume from an older checkpoint of the run"
        ) from error


def flush(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
