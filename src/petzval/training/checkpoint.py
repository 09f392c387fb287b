"""A run's state on disk: safetensors and JSON, written whole or not at all.

    run/checkpoints/step-00001200/
        model.safetensors       parameters and buffers
        ema.safetensors         averages of the parameters
        optimizer.safetensors   moments, named `<optimizer>.<parameter>.<moment>`
        state.json              counters and the optimizers' scalar settings

Nothing random is stored: batches are a function of the step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from petzval.errors import TrainingError
from petzval.training.state import RunState, SpikeGuard

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""

_FORMAT = 1


def save_checkpoint(folder: Path, state: RunState, *, keep: int = 2) -> Path:
    """Write `folder/step-<n>` and drop all but the newest `keep`.

    The files are written under another name, flushed to the disk, then renamed: whoever looks finds
    a whole checkpoint or none.

    Args:
        folder: of all checkpoints of the run; made where needed.
        state: what to keep.
        keep: number of checkpoints that stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step:08d}"
    draft = folder / f".incomplete-{state.step:08d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    moments, settings = _split_optimizers(state.optimizers)
    _save_tensors(draft / "model.safetensors", state.model.state_dict())
    _save_tensors(draft / "optimizer.safetensors", moments)
    if state.ema is not None:
        _save_tensors(draft / "ema.safetensors", state.ema.averages)
    description = {
        "format": _FORMAT,
        "step": state.step,
        "seconds": state.seconds,
        "num_items": state.num_items,
        "num_tokens": state.num_tokens,
        "ema_updates": state.ema.num_updates if state.ema is not None else None,
        "guard": dataclasses.asdict(state.guard),
        "optimizers": settings,
    }
    (draft / "state.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    for path in [*draft.iterdir(), draft]:
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    _flush(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").is_file())


def load_checkpoint(path: Path, state: RunState) -> None:
    """Put a stored state into freshly built objects of the same recipe.

    Raises:
        TrainingError: the files are damaged or belong to another model or optimizer.
    """
    description = _read_json(path / "state.json")
    if description.get("format") != _FORMAT:
        raise TrainingError(
            f"{path} has checkpoint format {description.get('format')}, expected {_FORMAT}",
            "train again with this version, or go back to the version that wrote it",
        )
    _restore(path / "model.safetensors", state.model.state_dict())
    if state.ema is not None:
        _restore(path / "ema.safetensors", state.ema.averages)
        state.ema.num_updates = int(description["ema_updates"])
    moments = _read_tensors(path / "optimizer.safetensors")
    _join_optimizers(state.optimizers, moments, description["optimizers"], path)
    state.guard = SpikeGuard(**description["guard"])
    state.step = int(description["step"])
    state.seconds = float(description["seconds"])
    state.num_items = int(description["num_items"])
    state.num_tokens = int(description["num_tokens"])


def load_weights(path: Path, state: RunState) -> None:
    """Take only the weights and averages of a checkpoint: the start of a following stage."""
    _restore(path / "model.safetensors", state.model.state_dict())
    if state.ema is not None:
        _restore(path / "ema.safetensors", state.ema.averages)


def _split_optimizers(
    optimizers: list[torch.optim.Optimizer],
) -> tuple[dict[str, Tensor], list[Any]]:
    moments: dict[str, Tensor] = {}
    settings: list[Any] = []
    for number, optimizer in enumerate(optimizers):
        stored: dict[str, Any] = optimizer.state_dict()
        for index, values in cast("dict[int, dict[str, Any]]", stored["state"]).items():
            for name, value in values.items():
                moments[f"{number}.{index}.{name}"] = torch.as_tensor(value)
        settings.append({"class": type(optimizer).__name__, "groups": stored["param_groups"]})
    return moments, settings


def _join_optimizers(
    optimizers: list[torch.optim.Optimizer],
    moments: Mapping[str, Tensor],
    settings: list[Any],
    path: Path,
) -> None:
    names = [type(optimizer).__name__ for optimizer in optimizers]
    stored_names = [entry["class"] for entry in settings]
    if names != stored_names:
        raise TrainingError(
            f"{path} was written with optimizers {stored_names}, the recipe has {names}",
            "resume with the recipe that started the run, or start another run folder",
        )
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in moments.items():
            owner, index, name = key.split(".", 2)
            if int(owner) == number:
                state.setdefault(int(index), {})[name] = value
        groups = settings[number]["groups"]
        for group in groups:
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        optimizer.load_state_dict({"state": state, "param_groups": groups})


@torch.no_grad()
def _restore(path: Path, targets: Mapping[str, Tensor]) -> None:
    """Copy a file's tensors over existing ones of the same names and shapes."""
    stored = _read_tensors(path)
    for name in sorted(targets.keys() ^ stored.keys()):
        where = "lacks" if name in targets else "has the unknown tensor"
        raise TrainingError(
            f"{path} {where} {name}",
            "resume with the recipe that started the run, or start another run folder",
        )
    for name, target in targets.items():
        if target.shape != stored[name].shape:
            raise TrainingError(
                f"{path}: {name} has shape {list(stored[name].shape)}, "
                f"expected {list(target.shape)}",
                "resume with the recipe that started the run, or start another run folder",
            )
        target.copy_(stored[name])


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"cannot read {path}: {error}", "resume from an older checkpoint of the run"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(
            f"cannot read {path}: {error}", "resume from an older checkpoint of the run"
        ) from error


def _flush(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
