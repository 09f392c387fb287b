"""A fine-tuning run's folder: what the run is made of, and that nothing else lies there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

import petzval
from petzval.config import read_json
from petzval.errors import TrainingError
from petzval.pretrain.captioned_folder import CaptionedPicture

RECIPE = "recipe.json"

_LENGTHS = ("num_steps", "minutes")
"""Settings that may change between two sessions of a run."""


def describe_run(
    model: str,
    identity: str,
    pictures: Sequence[CaptionedPicture],
    settings: Mapping[str, Any],
    *,
    machine: str,
) -> dict[str, Any]:
    """What a run is made of, as JSON can hold it.

    Args:
        model: name of the checkpoint.
        identity: hash of its weights.
        pictures: in the order in which they are dealt.
        settings: all of them.
        machine: this one, in a few words.
    """
    return {
        "petzval": petzval.__version__,
        "torch": torch.__version__,
        "machine": machine,
        "model": model,
        "checkpoint": identity,
        "pictures": [
            {"file": p.file.name, "sha256": p.sha256, "caption": p.caption} for p in pictures
        ],
        "settings": dict(settings),
    }


def claim(out: Path, record: Mapping[str, Any], *, resume: bool) -> None:
    """Take a folder for this run, or see that it is this run's already.

    Args:
        out: the folder; made where needed.
        record: from `describe_run`; written into it.
        resume: False takes the folder of another run, too, and drops its grids.

    Raises:
        TrainingError: it holds something else, or another run that is to go on.
    """
    file = out / RECIPE
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not file.is_file())):
        raise TrainingError(f"{out}: holds something else than a fine-tuning run", "name another")
    if file.is_file() and resume:
        differing = _difference(read_json(file), record)
        if differing is not None:
            raise TrainingError(
                f"{out}: the run there has other {differing}",
                "go on with the same, begin anew with --restart, or name another folder",
            )
    try:
        if not resume:
            shutil.rmtree(out / "grids", ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        draft = out / f".{RECIPE}"
        draft.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        raise TrainingError(
            f"{out}: cannot be written ({error.strerror})", "choose another place with --out"
        ) from error


def _difference(stored: Any, record: Mapping[str, Any]) -> str | None:
    """The first part of a run that is not as it was; None if all that matters is the same."""
    before = cast("dict[str, Any]", stored if isinstance(stored, dict) else {})
    settings: Any = before.get("settings")
    if not isinstance(settings, dict):
        return "contents: its recipe is damaged"
    if before.get("checkpoint") != record["checkpoint"]:
        return f"weights ({str(before.get('model'))[:80]})"
    if before.get("pictures") != record["pictures"]:
        return "pictures or captions"
    old = cast("dict[str, Any]", settings)
    for name, value in record["settings"].items():
        if name not in _LENGTHS and old.get(name) != value:
            return f"settings: {name} was {str(old.get(name))[:200]}"
    return None
