"""Checkpoints of several processes: each rank writes its own part, behind the training's back.

    step-00001200/
        shard-00001-model-00001-of-00001.safetensors   rank 0's parts, and their places
        shard-00002-…                                  …
        state.json                                     what is not a tensor; written last

What is trusted: nothing that is executed. torch.distributed.checkpoint does the planning, the
staging and the resharding, but in its safetensors form: names, shapes and offsets stand in the
files' JSON headers, and its usual `.metadata`, which is a pickle, is neither written nor looked at.
Pickles travel only between the live processes of one run, when they agree on who writes what.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from petzval.errors import TrainingError
from petzval.training import folders, snapshot
from petzval.training.state import RunState, Trained

FORMAT = 2


class ShardedWriter:
    """Saves asynchronously, one checkpoint at a time.

    `save` returns when the tensors are copied to the CPU; files are written by a thread of each
    rank. When the last rank is done the first one writes `state.json` and renames the folder. All
    ranks must call `save` and `finish` alike.
    """

    def __init__(self, folder: Path, *, keep: int = 2, milestone_steps: int | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.milestone_steps = milestone_steps
        self._written: Future[Any] | None = None
        self._committed = threading.Event()
        self._failure: BaseException | None = None

    def save(self, state: RunState, objective: object = None) -> Path:
        """Begin to write the state; waits for the one before, if it is still being written."""
        self.finish(state)
        draft = self.folder / f".incomplete-{state.step:08d}"
        description = {"format": FORMAT, **snapshot.describe(state, objective)}
        if state.ranks.is_first:
            folders.begin(self.folder, state.step)
        state.ranks.wait()
        self._committed = threading.Event()
        written = async_save(
            _tensors(state) | _random(state),
            storage_writer=HuggingFaceStorageWriter(str(draft), save_distributed=True),
            process_group=state.ranks.background,
        )
        self._written = cast("Future[Any]", written)
        if state.ranks.is_first:
            step = state.step
            self._written.add_done_callback(
                lambda future: self._commit(future, draft, step, description)
            )
        return self.folder / f"step-{state.step:08d}"

    def finish(self, state: RunState) -> None:
        """Wait until the checkpoint in flight is whole on the disk and has its name."""
        if self._written is None:
            return
        written, self._written = self._written, None
        try:
            written.result()
            if state.ranks.is_first:
                self._committed.wait()
        except (OSError, CheckpointException) as error:
            self._failure = error
        # One rank's full disk must not leave the others waiting for it.
        if state.ranks.any(self._failure is not None):
            raise TrainingError(
                f"a checkpoint could not be written to {self.folder}: "
                f"{self._failure or 'another rank says why'}",
                "free some space; the checkpoints before it are untouched",
            ) from self._failure

    def _commit(
        self, future: Future[Any], draft: Path, step: int, description: dict[str, Any]
    ) -> None:
        """In the writing thread of the first rank: all ranks' files are on the disk."""
        try:
            if future.exception() is None:
                folders.commit(draft, step, description)
                folders.prune(self.folder, self.keep, self.milestone_steps)
        except Exception as error:
            self._failure = error
        finally:
            self._committed.set()


def load_sharded(path: Path, state: RunState, objective: object = None) -> None:
    """Put a checkpoint of any number of ranks into a state of any number of ranks."""
    description = folders.read_description(path)
    snapshot.check_parts(description, state, path)
    stored = _shapes(path)
    targets: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for prefix, part in state.parts():
        weights = _weights(prefix, part)
        kinds = ("model",) if part.ema is None else ("model", "ema")
        starts = tuple(f"{prefix}{kind}." for kind in kinds)
        own = {name: m.size for name, m in stored.items() if name.startswith(starts)}
        snapshot.check_names(own, weights, path)
        start = f"{prefix}optimizer."
        moments[prefix] = {
            name.removeprefix(start): _empty(
                metadata,
                snapshot.parameter_of(part.optimizers, name.removeprefix(start)),
                path,
            )
            for name, metadata in stored.items()
            if name.startswith(start)
        }
        targets |= weights | _prefixed(start[:-1], moments[prefix])
    prefix = f"rng.{state.ranks.rank}."
    random = {name: _empty(m, None, path) for name, m in stored.items() if name.startswith(prefix)}
    _read(path, targets | random, state)
    for prefix, part in state.parts():
        told = snapshot.described(description, prefix)
        snapshot.restore_moments(part.optimizers, moments[prefix], told)
    snapshot.restore_random_states(
        {name.removeprefix("rng."): value for name, value in random.items()}, state.ranks.rank
    )
    snapshot.restore_description(description, state, objective)


def load_sharded_weights(path: Path, state: RunState) -> None:
    """Take only the model's weights and averages."""
    targets = _weights("", state)
    stored = {name: metadata.size for name, metadata in _shapes(path).items() if name in targets}
    snapshot.check_names(stored, targets, path)
    _read(path, targets, state)


def _weights(prefix: str, part: Trained) -> dict[str, Tensor]:
    averages = part.ema.averages if part.ema is not None else {}
    weights = _prefixed(f"{prefix}model", part.model.state_dict())
    return weights | _prefixed(f"{prefix}ema", averages)


def _tensors(state: RunState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for prefix, part in state.parts():
        tensors |= _weights(prefix, part)
        tensors |= _prefixed(f"{prefix}optimizer", snapshot.moments(part.optimizers))
    return tensors


def _random(state: RunState) -> dict[str, Tensor]:
    return _prefixed("rng", snapshot.random_states(state.ranks.rank))


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


def _shapes(path: Path) -> dict[str, TensorStorageMetadata]:
    try:
        metadata = HuggingFaceStorageReader(str(path)).read_metadata()
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    return cast("dict[str, TensorStorageMetadata]", metadata.state_dict_metadata)


def _empty(metadata: TensorStorageMetadata, example: Tensor | None, path: Path) -> Tensor:
    """Room for a stored tensor: sharded as its parameter is, or whole if it is a counter."""
    if example is not None and metadata.size == example.shape:
        return torch.zeros_like(example.detach(), dtype=metadata.properties.dtype)
    if metadata.size.numel() > 1 and example is not None:
        raise TrainingError(
            f"{path} holds a moment of shape {list(metadata.size)} for a parameter of shape "
            f"{list(example.shape)}",
            snapshot.WRONG_RUN,
        )
    return torch.zeros(metadata.size, dtype=metadata.properties.dtype)


def _read(path: Path, targets: dict[str, Tensor], state: RunState) -> None:
    """Overwrite the targets; each rank reads the parts that it needs."""
    try:
        with warnings.catch_warnings():
            # One process reading what several wrote is meant.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(
                targets,
                storage_reader=HuggingFaceStorageReader(str(path)),
                process_group=state.ranks.background,
                no_dist=state.ranks.size == 1,
            )
    except (OSError, SafetensorError, CheckpointException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> TrainingError:
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return TrainingError(
        f"cannot read {path}: {reason}", "resume from an older checkpoint of the run"
    )
