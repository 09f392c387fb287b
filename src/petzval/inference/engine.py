"""The engine of one device, or several: waiting pictures in, pictures and progress out.

Tasks wait in a bounded, fair queue, picture by picture, so that a large task does not stand in the
way of a small one. A drawer, one for each device, takes the next picture and, where batches are
allowed, others with the same size and steps. What takes no network, previews, files, whatever a
listener does, runs in another thread than the drawing.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from petzval.errors import PetzvalError, QueueFullError
from petzval.inference.event import Pixels, StepEvent
from petzval.inference.fair_queue import FairQueue
from petzval.inference.plan import GenerationPlan, PlannedImage
from petzval.inference.task import (
    Ended,
    Finished,
    Listener,
    NamedLora,
    OfferedModel,
    Started,
    Stepped,
    Task,
)

_LOGGER = logging.getLogger(__name__)

CAPACITY = 256
"""Tasks that may wait, unless the engine is told otherwise."""

_BACKLOG = 64
"""Events that may wait for slow listeners before drawing waits for them, too."""

_PREVIEW_BACKLOG = 8
"""Events that may wait before previews are left out."""

_SWEEP_SECONDS = 0.5


@runtime_checkable
class Drawer(Protocol):
    """What draws on one device; it is asked for one run of the sampler at a time."""

    @property
    def models(self) -> Sequence[OfferedModel]:
        """What it can draw with; the first is the default. Equal for all drawers of an engine."""
        ...

    def draw(
        self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan
    ) -> Generator[StepEvent, None, None]:
        """Draw the pictures of a plan, step by step; closing the generator stops the work."""
        ...

    def prepare(self, model: str, plan: GenerationPlan) -> None:
        """A plan that is likely to be drawn next: encode its words meanwhile, where that helps."""
        ...


@dataclass(kw_only=True, slots=True, eq=False)
class _Live:
    """A task in the engine."""

    task: Task
    listener: Listener
    missing: set[int]
    submitted: float = field(default_factory=time.monotonic)
    began: float | None = None
    over: bool = False
    failure: Exception | None = None

    @property
    def expired(self) -> bool:
        now = time.monotonic()
        if self.began is None:
            limit = self.task.wait_seconds
            return limit is not None and now - self.submitted > limit
        limit = self.task.draw_seconds
        return limit is not None and now - self.began > limit


@dataclass(kw_only=True, slots=True, eq=False)
class _Unit:
    """One picture of a task; `attempts` to draw it have failed, and then it is drawn alone."""

    live: _Live
    image: PlannedImage
    attempts: int = 0


class Engine:
    """Draws tasks with its drawers until it is closed; use it as a context, or `start` it.

    Args:
        drawers: one for each device.
        capacity: tasks that may wait.
        batch_size: pictures that may run through the networks together. Above 1 the last bits of a
            picture depend on its company.
    """

    def __init__(
        self, drawers: Sequence[Drawer], *, capacity: int = CAPACITY, batch_size: int = 1
    ) -> None:
        self.models = tuple(drawers[0].models)
        self.capacity = capacity
        self.batch_size = batch_size
        self._drawers = tuple(drawers)
        self._changed = threading.Condition()
        self._waiting: FairQueue[_Unit] = FairQueue()
        self._live: dict[str, _Live] = {}
        self._closing = threading.Event()
        self._swept = 0.0
        self._deliveries = [_Delivery() for _ in drawers]
        self._threads = [
            threading.Thread(target=self._work, args=(d,), name="petzval-draw", daemon=True)
            for d in self._drawers
        ]

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to draw."""
        for delivery in self._deliveries:
            delivery.thread.start()
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Take no more pictures; finish those that are being drawn, then stop.

        Tasks that are not done get no `Ended`: whoever keeps them may submit them again.

        Args:
            seconds: give up a picture that takes longer than this; None waits for it.
        """
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._live.clear()  # what is still being drawn stops at its next step
        for delivery in self._deliveries:
            delivery.end()

    @property
    def is_working(self) -> bool:
        """Whether all drawers are at work or ready for it."""
        return not self._closing.is_set() and all(thread.is_alive() for thread in self._threads)

    @property
    def num_waiting(self) -> int:
        """Tasks that have not begun."""
        with self._changed:
            return sum(live.began is None for live in self._live.values())

    def num_waiting_of(self, owner: str) -> int:
        """Tasks of one owner that have not begun."""
        with self._changed:
            return sum(
                live.began is None and live.task.owner == owner for live in self._live.values()
            )

    def positions(self) -> dict[str, int]:
        """For each task that has not begun, its place in the queue, from 1."""
        with self._changed:
            waiting = (unit.live for unit in self._waiting if unit.live.began is None)
            order = dict.fromkeys(live.task.id for live in waiting)
        return {task: place for place, task in enumerate(order, start=1)}

    def submit(self, task: Task, listener: Listener, *, over_capacity: bool = False) -> None:
        """Accept a task; `listener` hears of it until its `Ended`.

        Args:
            over_capacity: accept it although the queue is full, as after a restart.

        Raises:
            QueueFullError: too many tasks wait; nothing was accepted.
        """
        indices = {image.index for image in task.plan.images}
        live = _Live(task=task, listener=listener, missing=indices)
        with self._changed:
            if not over_capacity and self.num_waiting >= self.capacity:
                raise QueueFullError(
                    f"{self.capacity} requests are waiting already", "try again in a while"
                )
            self._live[task.id] = live
            for image in task.plan.images:
                self._put(_Unit(live=live, image=image))
            self._changed.notify()

    def cancel(self, task: str) -> bool:
        """Stop a task within a step.

        Returns:
            False where no such task is under way.
        """
        with self._changed:
            live = self._live.get(task)
            if live is None:
                return False
            self._end(live, Ended(task=task, how="cancelled"))
            return True

    def _put(self, unit: _Unit) -> None:
        task = unit.live.task
        self._waiting.put(
            unit,
            owner=task.owner,
            cost=task.cost_of(unit.image),
            priority=task.priority,
            weight=task.weight,
        )

    def _end(self, live: _Live, event: Ended) -> None:
        """Nothing of the task will be drawn any more; its listener hears why."""
        live.over = True
        self._live.pop(live.task.id, None)
        self._waiting.remove(lambda unit: unit.live is live)
        self._delivery(live).put_end(live, event)

    def _delivery(self, live: _Live) -> _Delivery:
        """Always the same for one task, so that its events stay in order."""
        return self._deliveries[zlib.crc32(live.task.id.encode()) % len(self._deliveries)]

    def _sweep(self) -> None:
        """End the tasks whose time is up."""
        if time.monotonic() - self._swept < _SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        for live in [live for live in self._live.values() if live.expired]:
            self._end(live, Ended(task=live.task.id, how="timeout"))

    def _work(self, drawer: Drawer) -> None:
        while batch := self._take():
            try:
                self._draw(drawer, batch)
            except Exception as error:
                self._failed(batch, error)

    def _take(self) -> list[_Unit]:
        """The next batch; empty when the engine closes."""
        with self._changed:
            while not self._closing.is_set():
                self._sweep()
                unit = self._waiting.take()
                if unit is not None:
                    return [unit, *self._companions(unit)]
                self._changed.wait(_SWEEP_SECONDS)
            return []

    def _companions(self, first: _Unit) -> list[_Unit]:
        if self.batch_size == 1 or first.attempts:
            return []
        key = first.live.task.batch_key
        return self._waiting.take_companions(
            lambda unit: unit.attempts == 0 and unit.live.task.batch_key == key,
            self.batch_size - 1,
        )

    def _prepare_next(self, drawer: Drawer) -> None:
        with self._changed:
            unit = next(iter(self._waiting), None)
        if unit is not None:
            task = unit.live.task
            drawer.prepare(task.model, replace(task.plan, images=(unit.image,)))

    def _draw(self, drawer: Drawer, batch: list[_Unit]) -> None:
        task = batch[0].live.task
        for unit in batch:
            self._begin(unit.live)
        images = tuple(replace(unit.image, index=row) for row, unit in enumerate(batch))
        plan = replace(task.plan, images=images)
        with closing(drawer.draw(task.model, task.loras, plan)) as events:
            for count, event in enumerate(events):
                if count == 0:  # the words of this batch are encoded
                    self._prepare_next(drawer)
                for row, index in enumerate(event.indices):
                    self._tell(batch[index], event, row)
                with self._changed:
                    self._sweep()
                    if not any(unit.live.task.id in self._live for unit in batch):
                        return

    def _begin(self, live: _Live) -> None:
        if live.began is None:
            live.began = time.monotonic()
            self._delivery(live).put_start(live)

    def _tell(self, unit: _Unit, event: StepEvent, row: int) -> None:
        live, task = unit.live, unit.live.task
        if live.over:
            return
        delivery = self._delivery(live)
        delivery.wait_for_room()
        delivery.put_step(live, unit, event, row)
        if event.step == event.num_steps:
            delivery.put_picture(live, unit, event, row)
            with self._changed:
                live.missing.discard(unit.image.index)
                if not live.missing and not live.over:
                    self._end(live, Ended(task=task.id, how="done"))

    def _failed(self, batch: list[_Unit], error: Exception) -> None:
        """Draw once more, each alone, where that may help; else the task has failed."""
        with self._changed:
            for unit in batch:
                if unit.live.over:
                    continue
                culpable = len(batch) == 1 and isinstance(error, PetzvalError)
                if culpable or unit.attempts:
                    self._end(unit.live, Ended(task=unit.live.task.id, how="failed", error=error))
                elif unit.image.index in unit.live.missing:
                    unit.attempts += 1
                    self._put(unit)


class _Delivery:
    """A thread that calls listeners, in order, with what had to be computed for them."""

    def __init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="petzval-deliver", daemon=True)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def put_start(self, live: _Live) -> None:
        """Pass on that a task has begun."""
        self._calls.put(lambda: live.listener(Started(task=live.task.id)))

    def put_end(self, live: _Live, event: Ended) -> None:
        """Pass on how a task ended; a picture that could not be decoded makes it a failure."""

        def call() -> None:
            if event.how == "done" and live.failure is not None:
                live.listener(Ended(task=live.task.id, how="failed", error=live.failure))
            else:
                live.listener(event)

        self._calls.put(call)

    def put_step(self, live: _Live, unit: _Unit, event: StepEvent, row: int) -> None:
        """Pass a step on, with the pictures-so-far that were asked for."""
        is_partial = event.step in partial_steps(live.task.partials, event.num_steps)
        preview = _row(event.small_preview, row) if live.task.previews else None
        partial = _row(event.preview, row) if is_partial else None
        if partial is not None and not event.any_thread:
            partial = _made(partial())  # in this thread, which draws

        def call() -> None:
            busy = self._calls.qsize() > _PREVIEW_BACKLOG
            live.listener(
                Stepped(
                    task=live.task.id,
                    image=unit.image.index,
                    step=event.step,
                    num_steps=event.num_steps,
                    preview=None if busy else preview,
                    partial=None if partial is None else partial()[0],
                )
            )

        self._calls.put(call)

    def put_picture(self, live: _Live, unit: _Unit, event: StepEvent, row: int) -> None:
        """Pass a finished picture on, decoded here where the drawer left that to us."""

        def call() -> None:
            try:
                images = event.images if event.finish is None else event.finish()
            except Exception as error:
                live.failure = error
                return
            image = replace(images[row], index=unit.image.index)
            live.listener(Finished(task=live.task.id, image=image))

        self._calls.put(call)

    def wait_for_room(self) -> None:
        """Return when listeners are not too far behind."""
        while self._calls.qsize() > _BACKLOG:
            time.sleep(0.005)

    def end(self) -> None:
        """Return when all that was put before has been passed on."""
        self._calls.put(None)
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:  # of a listener: the others still want to hear
                _LOGGER.exception("a listener failed")


def partial_steps(partials: int, num_steps: int) -> frozenset[int]:
    """The steps after which a picture-so-far is shown, evenly spread and before the last one."""
    return frozenset(
        num_steps * (number + 1) // (partials + 1)
        for number in range(partials)
        if 0 < num_steps * (number + 1) // (partials + 1) < num_steps
    )


def _row(preview: Callable[[], Pixels] | None, row: int) -> Callable[[], Pixels] | None:
    return None if preview is None else lambda: preview()[row : row + 1]


def _made(pixels: Pixels) -> Callable[[], Pixels]:
    return lambda: pixels
