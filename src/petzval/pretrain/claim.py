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
    stored = read_json(file) if file.is_file() else None
    occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if occupied and not _is_finetuning(stored):
        raise TrainingError(
            f"{out}: holds something else than a fine-tuning run", "name another folder with --out"
        )
    if stored is not None and resume:
        differing = _difference(stored, record)
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


def _is_finetuning(stored: Any) -> bool:
    """Other runs of training have a recipe, too."""
    if not isinstance(stored, dict):
        return False
    parts = cast("dict[str, Any]", stored)
    return isinstance(parts.get("pictures"), list) and isinstance(parts.get("settings"), dict)


def _difference(stored: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """The first part of a run that is not as it was; None if all that matters is the same."""
    if stored.get("checkpoint") != record["checkpoint"]:
        return f"weights ({str(stored.get('model'))[:80]})"
    if stored["pictures"] != record["pictures"]:
        return "pictures or captions"
    for name, value in record["settings"].items():
        before = stored["settings"].get(name)
        if name not in _LENGTHS and before != value:
            return f"settings: {name} was {str(before)[:200]}"
    return None
