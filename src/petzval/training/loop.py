"""When to log, show, save and stop."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, Literal, cast

import torch
from torch.utils.data import DataLoader, Dataset

from petzval.errors import ConfigError
from petzval.kernels import backends
from petzval.training.checkpoint import (
    CHECKPOINTS,
    CheckpointWriter,
    list_checkpoints,
    load_checkpoint,
)
from petzval.training.metrics import MetricsLog
from petzval.training.objective import Accumulating, BatchT, Objective, Preparing, Windowed
from petzval.training.optimizer import OptimizerConfig, learning_rate_factor, set_learning_rate
from petzval.training.parallel import ParallelConfig
from petzval.training.prefetch import Prefetcher
from petzval.training.state import RunState
from petzval.training.step import training_step
from petzval.training.watch import Heartbeat, stop_signal
from petzval.training.window import Window, peak_flops

Callback = Callable[[RunState], Mapping[str, float | Path]]
"""Looks at a run: numbers for the log by name, and files of pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Settings of a run that are not the objective's.

    Attributes:
        num_steps: the run ends after this many.
        minutes: … or after this much time in steps, summed over all sessions; None for no limit.
            With a limit the learning rate follows whichever of the two is further on.
        autocast: type of matrix products.
        log_every: steps between rows of the metrics.
        save_minutes: between checkpoints.
        callback_minutes: between calls of the callbacks (picture grids, held-out losses).
        keep: checkpoints that stay.
        milestone_steps: at every multiple a checkpoint is written that always stays; None for none.
        num_workers: processes that make batches ahead; 0 makes them in between steps.
        peak_flops: operations a second that MFU is counted against; None takes the GPU's known one.
        parallel: how the model is spread over processes, compiled and recomputed.
    """

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    num_steps: int = 1000
    minutes: float | None = None
    autocast: Literal["none", "bfloat16"] = "none"
    log_every: int = 20
    save_minutes: float = 5.0
    callback_minutes: float = 5.0
    keep: int = 2
    milestone_steps: int | None = None
    num_workers: int = 0
    ema_decay: float = 0.999
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        if self.milestone_steps is not None and self.milestone_steps < 1:
            raise ConfigError(f"milestone_steps must be at least 1, got {self.milestone_steps}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        reason: the step count or the time was reached, or a signal or the caller asked to stop.
        checkpoint: the state as saved at the end.
    """

    reason: Literal["steps", "minutes", "interrupted"]
    checkpoint: Path


def train(
    objective: Objective[BatchT],
    state: RunState,
    config: LoopConfig,
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train until the steps or the minutes are used up; save at the end in any case.

    SIGINT and SIGTERM, on any rank, end the run after the step in hand, with a checkpoint. In a run
    of several processes all of them call this alike, callbacks included; the first one writes.

    Args:
        objective: batches and loss; `prepare` and `state_dict` are used where it has them.
        state: fresh, or as left by an earlier call.
        folder: of the run; `checkpoints/`, `metrics.jsonl`, `heartbeat.json` and `events/` appear
            in it.
        callbacks: called with the state every `callback_minutes` and at the end; the numbers that
            they return go to the metrics, the pictures to TensorBoard.
        resume: go on from the newest checkpoint in the folder, if there is one; False deletes
            what is there and begins anew.
        report: receives one line of progress for each row of metrics.
    """
    ranks = state.ranks
    if not resume and ranks.is_first:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    # The first rank says where to go on: another could look a moment later and see another folder.
    found = ranks.gather([str(path) for path in list_checkpoints(folder / CHECKPOINTS)])[0]
    if found:
        newest = Path(found[-1])
        same_settings = load_checkpoint(newest, state, objective)
        report(f"resumed at step {state.step} from {newest.name}")
        if not same_settings:
            report("the settings of the run have changed since that checkpoint")
        reason = _finished(state, config)
        if reason is not None:
            return Outcome(reason=reason, checkpoint=newest)
    session = _Session(state, config, folder, callbacks, report)
    batches = _prepared_batches(objective, state, config)
    with stop_signal() as stop:
        while _finished(state, config) is None and not ranks.any(stop.is_set()):
            session.step(objective, batches)
        interrupted = _finished(state, config) is None
    checkpoint = session.end(objective, show=not interrupted)
    return Outcome(reason=_finished(state, config) or "interrupted", checkpoint=checkpoint)


class _Session:
    """One call of `train`: its log, its checkpoints, and when each was last written.

    All ranks go through it alike; the first one writes.
    """

    def __init__(
        self,
        state: RunState,
        config: LoopConfig,
        folder: Path,
        callbacks: Sequence[Callback],
        report: Callable[[str], None],
    ) -> None:
        device = next(state.model.parameters()).device
        if device.type == "cpu":
            backends.keep_heap(True)
        self.state, self.config, self.callbacks, self.report = state, config, callbacks, report
        self.metrics = MetricsLog(folder, step=state.step) if state.ranks.is_first else None
        self.heartbeat = Heartbeat(folder) if state.ranks.is_first else None
        self.writer = CheckpointWriter(
            folder / CHECKPOINTS, keep=config.keep, milestone_steps=config.milestone_steps
        )
        self.window = Window(config.peak_flops or peak_flops(device))
        self.logged_at = self.saved_at = self.shown_at = state.seconds
        self.saved: Path | None = None

    def step(self, objective: Objective[BatchT], batches: Iterator[BatchT]) -> None:
        """One training step and what is due after it."""
        state, config = self.state, self.config
        started = time.monotonic()
        rate = config.optimizer.learning_rate * learning_rate_factor(
            config.optimizer, state.step, progress(state, config)
        )
        set_learning_rate(state.optimizers, rate)
        for part in state.others.values():
            set_learning_rate(part.optimizers, rate * part.rate_factor)
        timed = _Timed(batches)
        made = training_step(
            objective,
            next(timed),
            state,
            max_grad_norm=config.optimizer.max_grad_norm,
            autocast=torch.bfloat16 if config.autocast == "bfloat16" else None,
            weighting=config.parallel.weighting,
            more=islice(timed, _batches_per_step(objective) - 1),
        )
        self.window.add(made, timed.waited)
        self.saved = None
        # Times decide what is due, so all ranks go by one clock.
        state.seconds = state.ranks.of_first(state.seconds + time.monotonic() - started)
        if self.heartbeat is not None:
            self.heartbeat.beat(state.step)
        if state.step % config.log_every == 0:
            self._log(rate)
        milestone = config.milestone_steps is not None and state.step % config.milestone_steps == 0
        if milestone or state.seconds - self.saved_at >= config.save_minutes * 60:
            self._save(objective)
        if state.seconds - self.shown_at >= config.callback_minutes * 60:
            self._show()

    def end(self, objective: object, *, show: bool) -> Path:
        """Save the last state, unless it is saved; wait until it is on the disk."""
        saved = self.saved or self._save(objective)
        self.writer.finish(self.state)
        if show:
            self._show()
        if self.metrics is not None:
            self.metrics.close()
        return saved

    def _log(self, rate: float) -> None:
        row = self.window.row(self.state.seconds - self.logged_at, rate, self.state)
        self.logged_at = self.state.seconds
        if self.metrics is not None:
            self.metrics.write(self.state.step, row)
            self.report(_line(self.state.step, row))

    def _save(self, objective: object) -> Path:
        self.saved = self.writer.save(self.state, objective)
        self.saved_at = self.state.seconds
        return self.saved

    def _show(self) -> None:
        for callback in self.callbacks:
            found = callback(self.state)
            if self.metrics is None:
                continue
            values = {name: each for name, each in found.items() if not isinstance(each, Path)}
            if values:
                self.metrics.write(self.state.step, values)
            for name, each in found.items():
                if isinstance(each, Path):
                    self.metrics.show(self.state.step, name, each)
        self.shown_at = self.state.seconds


def progress(state: RunState, config: LoopConfig) -> float:
    """Share of the run that is done, by steps or by time, whichever is more."""
    share = state.step / max(1, config.num_steps)
    if config.minutes is not None:
        share = max(share, state.seconds / max(1e-9, config.minutes * 60))
    return min(1.0, share)


def _finished(state: RunState, config: LoopConfig) -> Literal["steps", "minutes"] | None:
    if state.step >= config.num_steps:
        return "steps"
    if config.minutes is not None and state.seconds >= config.minutes * 60:
        return "minutes"
    return None


class _Timed(Generic[BatchT]):
    """Batches, and the seconds that were waited for them."""

    def __init__(self, batches: Iterator[BatchT]) -> None:
        self._batches = batches
        self.waited = 0.0

    def __iter__(self) -> Iterator[BatchT]:
        return self

    def __next__(self) -> BatchT:
        started = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self.waited += time.monotonic() - started


class _Windows(Dataset[list[Any]]):
    """The batches of a run, window by window, for worker processes."""

    def __init__(self, objective: Objective[Any], numbers: range) -> None:
        self.objective = objective
        size = objective.batches_per_window if isinstance(objective, Windowed) else 1
        # The first window of a resumed run may be cut.
        cuts = [numbers.start, *range((numbers.start // size + 1) * size, numbers.stop, size)]
        self.windows = [
            range(start, stop)
            for start, stop in zip(cuts, [*cuts[1:], numbers.stop], strict=True)
            if start < stop
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> list[Any]:
        return [self.objective.batch(number) for number in self.windows[index]]


def _prepared_batches(
    objective: Objective[BatchT], state: RunState, config: LoopConfig
) -> Iterator[BatchT]:
    """Batches of the steps that are left, with the frozen networks' work one step ahead."""
    prepare: Callable[[BatchT], BatchT] | None = None
    if isinstance(objective, Preparing):
        prepare = torch.no_grad()(cast("Preparing[BatchT]", objective).prepare)
    device = next(state.model.parameters()).device
    return Prefetcher(_makers(objective, state.step, config), prepare, device)


def _batches_per_step(objective: object) -> int:
    return objective.batches_per_step if isinstance(objective, Accumulating) else 1


def _makers(
    objective: Objective[BatchT], first_step: int, config: LoopConfig
) -> Iterator[Callable[[], BatchT]]:
    """Makers of batches from a step on; called inside the timed part of the step."""
    each = _batches_per_step(objective)
    numbers = range(first_step * each, config.num_steps * each)
    if config.num_workers == 0:
        for number in numbers:
            yield lambda number=number: objective.batch(number)
        return
    loader = DataLoader(
        _Windows(objective, numbers),
        batch_size=None,
        num_workers=config.num_workers,
        prefetch_factor=2,
    )
    batches = chain.from_iterable(loader)
    for _ in numbers:
        yield lambda: next(batches)


def _line(step: int, row: dict[str, float]) -> str:
    return (
        f"step {step}  loss {row['loss']:.4f}  grad {row['grad_norm']:.2f}  "
        f"lr {row['learning_rate']:.1e}  {row['images_per_second']:.1f} items/s  "
        f"{row['seconds'] / 60:.1f} min"
    )
