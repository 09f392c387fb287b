"""A run's state on disk: safetensors and JSON, written whole or not at all.

    run/checkpoints/step-00001200/
        model.safetensors       parameters and buffers
        ema.safetensors         averages of the parameters
        optimizer.safetensors   moments, named `<optimizer>.<parameter>.<moment>`
        rng.safetensors         states of torch's generators (a batch never depends on them)
        state.json              counters, the optimizers' settings, the sampler's state

That is what one process writes. Several processes write the same tensors in parts (`sharded.py`).
Either kind is read by any number of processes, without loss. Nothing that is read is executed:
there is no pickle in either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from petzval.errors import TrainingError
from petzval.training import folders, snapshot
from petzval.training.folders import CHECKPOINTS, list_checkpoints, read_description
from petzval.training.sharded import FORMAT as SHARDED_FORMAT
from petzval.training.sharded import ShardedWriter, load_sharded, load_sharded_weights
from petzval.training.state import RunState, Trained

__all__ = [
    "CHECKPOINTS",
    "CheckpointWriter",
    "list_checkpoints",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]

_FORMAT = 1


def save_checkpoint(
    folder: Path,
    state: RunState,
    *,
    keep: int = 2,
    milestone_steps: int | None = None,
    objective: object = None,
) -> Path:
    """Write `folder/step-<n>` from one process, and drop all but the newest `keep`.

    The files are written under another name, flushed to the disk, then renamed: whoever looks finds
    a whole checkpoint or none.

    Args:
        folder: of all checkpoints of the run; made where needed.
        state: what to keep.
        keep: number of checkpoints that stay, besides the milestones.
        milestone_steps: checkpoints at multiples of it always stay.
        objective: its `state_dict` is kept, if it has one.
    """
    draft = folders.begin(folder, state.step)
    for prefix, part in state.parts():
        _save_tensors(draft / f"{prefix}model.safetensors", part.model.state_dict())
        _save_tensors(draft / f"{prefix}optimizer.safetensors", snapshot.moments(part.optimizers))
        if part.ema is not None:
            _save_tensors(draft / f"{prefix}ema.safetensors", part.ema.averages)
    _save_tensors(draft / "rng.safetensors", snapshot.random_states(0))
    description = {"format": _FORMAT, **snapshot.describe(state, objective)}
    target = folders.commit(draft, state.step, description)
    folders.prune(folder, keep, milestone_steps)
    return target


def load_checkpoint(path: Path, state: RunState, objective: object = None) -> bool:
    """Put a stored state into freshly built objects of the same recipe.

    Returns:
        False if the checkpoint was written under other settings (another `config_hash`); it fits
        all the same.

    Raises:
        TrainingError: the files are damaged or belong to another model or optimizer.
    """
    description = read_description(path)
    written = description.get("format")
    if written == SHARDED_FORMAT:
        load_sharded(path, state, objective)
    elif written == _FORMAT:
        snapshot.check_parts(description, state, path)
        for prefix, part in state.parts():
            _restore_part(path, prefix, part, snapshot.described(description, prefix))
        if (path / "rng.safetensors").is_file():
            stored = _read_tensors(path / "rng.safetensors")
            snapshot.restore_random_states(stored, state.ranks.rank)
        snapshot.restore_description(description, state, objective)
    else:
        raise TrainingError(
            f"{path} has checkpoint format {written}, expected {_FORMAT} or {SHARDED_FORMAT}",
            "train again with this version, or go back to the version that wrote it",
        )
    hashes = {state.config_hash, description.get("config_hash") or ""} - {""}
    return len(hashes) < 2


def load_weights(path: Path, state: RunState) -> None:
    """Take only the model's weights and averages: the start of a following stage."""
    if read_description(path).get("format") == SHARDED_FORMAT:
        load_sharded_weights(path, state)
        return
    _restore_weights(path, "", state)


class CheckpointWriter:
    """Saves a run's state: at once in a run of one process, asynchronously in one of several."""

    def __init__(self, folder: Path, *, keep: int = 2, milestone_steps: int | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.milestone_steps = milestone_steps
        self._sharded = ShardedWriter(folder, keep=keep, milestone_steps=milestone_steps)

    def save(self, state: RunState, objective: object = None) -> Path:
        """Write the state, or begin to; the path that it has or will have."""
        if state.ranks.size > 1:
            return self._sharded.save(state, objective)
        return save_checkpoint(
            self.folder,
            state,
            keep=self.keep,
            milestone_steps=self.milestone_steps,
            objective=objective,
        )

    def finish(self, state: RunState) -> None:
        """Until what was begun is whole on the disk. All ranks must call it."""
        self._sharded.finish(state)


def _restore_weights(path: Path, prefix: str, part: Trained) -> None:
    _restore(path / f"{prefix}model.safetensors", part.model.state_dict())
    if part.ema is not None:
        _restore(path / f"{prefix}ema.safetensors", part.ema.averages)


def _restore_part(path: Path, prefix: str, part: Trained, told: Mapping[str, Any]) -> None:
    _restore_weights(path, prefix, part)
    moments = {
        key: _placed(tensor, snapshot.parameter_of(part.optimizers, key))
        for key, tensor in _read_tensors(path / f"{prefix}optimizer.safetensors").items()
    }
    snapshot.restore_moments(part.optimizers, moments, told)


def _placed(tensor: Tensor, parameter: Tensor | None) -> Tensor:
    return tensor if parameter is None else snapshot.sharded_like(tensor, parameter)


@torch.no_grad()
def _restore(path: Path, targets: Mapping[str, Tensor]) -> None:
    """Copy a file's tensors over existing ones of the same names and shapes."""
    stored = _read_tensors(path)
    snapshot.check_names({name: list(t.shape) for name, t in stored.items()}, targets, path)
    for name, target in targets.items():
        target.copy_(snapshot.sharded_like(stored[name], target))


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"cannot read {path}: {error}", "resume from an older checkpoint of the run"
        ) from error
