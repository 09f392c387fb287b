"""When to log, show, save and stop."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader, Dataset

from petzval.training.checkpoint import (
    CHECKPOINTS,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from petzval.training.metrics import MetricsLog
from petzval.training.objective import BatchT, Objective
from petzval.training.optimizer import OptimizerConfig, learning_rate_factor, set_learning_rate
from petzval.training.state import RunState
from petzval.training.step import StepReport, training_step

Callback = Callable[[RunState], Mapping[str, float]]


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
        num_workers: processes that make batches ahead; 0 makes them in between steps.
    """

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    num_steps: int = 1000
    minutes: float | None = None
    autocast: Literal["none", "bfloat16"] = "none"
    log_every: int = 20
    save_minutes: float = 5.0
    callback_minutes: float = 5.0
    keep: int = 2
    num_workers: int = 0
    ema_decay: float = 0.999


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

    SIGINT and SIGTERM end the run after the step in hand, with a checkpoint.

    Args:
        objective: batches and loss.
        state: fresh, or as left by an earlier call.
        folder: of the run; `checkpoints/`, `metrics.jsonl` and `events/` appear in it.
        callbacks: called with the state every `callback_minutes` and at the end; what they return
            goes to the metrics.
        resume: go on from the newest checkpoint in the folder, if there is one; False deletes
            what is there and begins anew.
        report: receives one line of progress for each row of metrics.
    """
    if not resume:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    found = list_checkpoints(folder / CHECKPOINTS)
    if found:
        load_checkpoint(found[-1], state)
        report(f"resumed at step {state.step} from {found[-1].name}")
        reason = _finished(state, config)
        if reason is not None:
            return Outcome(reason=reason, checkpoint=found[-1])
    metrics = MetricsLog(folder, step=state.step)
    autocast = torch.bfloat16 if config.autocast == "bfloat16" else None
    window: list[StepReport] = []
    logged_at = saved_at = shown_at = state.seconds
    with _stop_signal() as stop:
        for batch in _batches(objective, state.step, config):
            if _finished(state, config) is not None or stop.is_set():
                break
            started = time.monotonic()
            rate = config.optimizer.learning_rate * learning_rate_factor(
                config.optimizer, state.step, progress(state, config)
            )
            set_learning_rate(state.optimizers, rate)
            window.append(
                training_step(
                    objective,
                    batch(),
                    state,
                    max_grad_norm=config.optimizer.max_grad_norm,
                    autocast=autocast,
                )
            )
            state.seconds += time.monotonic() - started
            if state.step % config.log_every == 0:
                row = _summary(window, state.seconds - logged_at, rate, state)
                metrics.write(state.step, row)
                report(_line(state.step, row))
                window, logged_at = [], state.seconds
            if state.seconds - saved_at >= config.save_minutes * 60:
                save_checkpoint(folder / CHECKPOINTS, state, keep=config.keep)
                saved_at = state.seconds
            if state.seconds - shown_at >= config.callback_minutes * 60:
                _show(callbacks, state, metrics)
                shown_at = state.seconds
        interrupted = stop.is_set()
    checkpoint = save_checkpoint(folder / CHECKPOINTS, state, keep=config.keep)
    if not interrupted:
        _show(callbacks, state, metrics)
    metrics.close()
    reason = _finished(state, config)
    return Outcome(reason=reason or "interrupted", checkpoint=checkpoint)


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


def _show(callbacks: Sequence[Callback], state: RunState, metrics: MetricsLog) -> None:
    for callback in callbacks:
        values = callback(state)
        if values:
            metrics.write(state.step, values)


class _Steps(Dataset[Any]):
    """Batches by step number, for worker processes."""

    def __init__(self, objective: Objective[Any], num_steps: int) -> None:
        self.objective = objective
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: int) -> Any:
        return self.objective.batch(index)


def _batches(
    objective: Objective[BatchT], first: int, config: LoopConfig
) -> Iterator[Callable[[], BatchT]]:
    """Makers of batches from `first` on; called inside the timed part of the step."""
    if config.num_workers == 0:
        for step in range(first, config.num_steps + 1):
            yield lambda step=step: objective.batch(step)
        return
    loader = DataLoader(
        _Steps(objective, config.num_steps + 1),
        batch_size=None,
        sampler=cast("Any", range(first, config.num_steps + 1)),
        num_workers=config.num_workers,
        prefetch_factor=4,
    )
    batches = iter(loader)
    for _ in range(first, config.num_steps + 1):
        yield lambda: next(batches)


@contextmanager
def _stop_signal() -> Generator[threading.Event]:
    """An event that SIGINT and SIGTERM set; in other threads than the main one it never is."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _summary(
    window: Sequence[StepReport], seconds: float, rate: float, state: RunState
) -> dict[str, float]:
    """Means over the updates since the last row, rates per second, counters."""
    count = len(window)
    taken = [report for report in window if not report.skipped] or window
    names = sorted({name for report in taken for name in report.parts})
    row = {
        "loss": sum(report.loss for report in taken) / len(taken),
        "grad_norm": sum(report.grad_norm for report in taken) / len(taken),
        "learning_rate": rate,
        "images_per_second": sum(report.num_items for report in window) / max(seconds, 1e-9),
        "tokens_per_second": sum(report.num_tokens for report in window) / max(seconds, 1e-9),
        "seconds_per_step": seconds / count,
        "seconds": state.seconds,
        "num_items": float(state.num_items),
        "num_skipped": float(state.guard.num_skipped),
    }
    for name in names:
        values = [report.parts[name] for report in taken if name in report.parts]
        row[name] = sum(values) / len(values)
    return row


def _line(step: int, row: dict[str, float]) -> str:
    return (
        f"step {step}  loss {row['loss']:.4f}  grad {row['grad_norm']:.2f}  "
        f"lr {row['learning_rate']:.1e}  {row['images_per_second']:.1f} items/s  "
        f"{row['seconds'] / 60:.1f} min"
    )
