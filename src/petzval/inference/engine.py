"""The engine of one device, or several: waiting pictures in, pictures and progress out.

Tasks wait in a bounded, fair queue, picture by picture, so that a large task does not stand in the
way of a small one. A drawer, one for each device, takes the next picture and, where batches are
allowed, others with the same size and steps. What takes no network, previews, files, whatever a
listener does, runs in another thread than the drawing.

Who has the machine to himself, as the command line has, lets the engine `run` a task in his own
thread: the same task, the same events, the same pictures.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol, runtime_checkable

from petzval.errors import PetzvalError, QueueFullError
from petzval.inference.delivery import Delivery, Live, Unit
from petzval.inference.event import StepEvent
from petzval.inference.fair_queue import FairQueue
from petzval.inference.plan import GenerationPlan, PlannedImage
from petzval.inference.task import Ended, Listener, NamedLora, OfferedModel, Task, TaskEvent

CAPACITY = 256
"""Tasks that may wait, unless the engine is told otherwise."""

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

    def check(self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan) -> None:
        """Refuse pictures that no plan of memory has room for; from any thread.

        Raises:
            PlacementError: naming what does not fit, and a size that does.
        """
        ...

    def prepare(self, model: str, plan: GenerationPlan) -> None:
        """A plan that is likely to be drawn next: encode its words meanwhile, where that helps."""
        ...


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
        self._waiting: FairQueue[Unit] = FairQueue()
        self._live: dict[str, Live] = {}
        self._closing = threading.Event()
        self._swept = 0.0
        self._deliveries = [Delivery() for _ in drawers]
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
        # Always the same delivery for one task, so that its events stay in order.
        number = zlib.crc32(task.id.encode()) % len(self._deliveries)
        live = _live(task, listener, self._deliveries[number])
        with self._changed:
            if not over_capacity and self.num_waiting >= self.capacity:
                raise QueueFullError(
                    f"{self.capacity} requests are waiting already", "try again in a while"
                )
            self._live[task.id] = live
            for image in task.plan.images:
                self._put(Unit(live=live, image=image))
            self._changed.notify()

    def check(self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan) -> None:
        """Refuse what cannot be drawn here, before it is submitted; from any thread.

        Raises:
            PlacementError: as `Drawer.check`.
        """
        # Whichever drawer is free takes a picture, and which one that will be nobody knows yet: all
        # of them have to have room, or a job would succeed or fail by chance.
        for drawer in self._drawers:
            drawer.check(model, loras, plan)

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

    def run(self, task: Task) -> Generator[TaskEvent, None, None]:
        """Draw a task here and now, in the thread that iterates, on an engine that was not started.

        Its pictures are drawn in one go, as one plan, and nothing is tried twice: an error ends the
        task at once. Stop iterating to stop the work.

        Raises:
            RequestError: at the call, where the drawer refuses the plan.
        """
        if any(thread.ident is not None for thread in self._threads):
            raise RuntimeError("the engine was started, and its own threads draw: submit the task")
        drawer = self._drawers[0]
        plan = _renumbered(task.plan, task.plan.images)
        return self._run(task, drawer.draw(task.model, task.loras, plan))

    def _run(
        self, task: Task, events: Generator[StepEvent, None, None]
    ) -> Generator[TaskEvent, None, None]:
        told: deque[TaskEvent] = deque()
        live = _live(task, told.append, Delivery(at_once=True))
        units = [Unit(live=live, image=image) for image in task.plan.images]
        self._live[task.id] = live
        try:
            self._begin(live)
            try:
                for _ in self._follow(units, events):
                    while told:
                        yield told.popleft()
            except Exception as error:
                self._end(live, Ended(task=task.id, how="failed", error=error))
            yield from told
        finally:
            self._live.pop(task.id, None)

    def _put(self, unit: Unit) -> None:
        task = unit.live.task
        self._waiting.put(
            unit,
            owner=task.owner,
            cost=task.cost_of(unit.image),
            priority=task.priority,
            weight=task.weight,
        )

    def _end(self, live: Live, event: Ended) -> None:
        """Nothing of the task will be drawn any more; its listener hears why."""
        live.over = True
        self._live.pop(live.task.id, None)
        self._waiting.remove(lambda unit: unit.live is live)
        live.delivery.put_end(live, event)

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

    def _take(self) -> list[Unit]:
        """The next batch; empty when the engine closes."""
        with self._changed:
            while not self._closing.is_set():
                self._sweep()
                unit = self._waiting.take()
                if unit is not None:
                    return [unit, *self._companions(unit)]
                self._changed.wait(_SWEEP_SECONDS)
            return []

    def _companions(self, first: Unit) -> list[Unit]:
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

    def _draw(self, drawer: Drawer, batch: list[Unit]) -> None:
        task = batch[0].live.task
        for unit in batch:
            self._begin(unit.live)
        plan = _renumbered(task.plan, [unit.image for unit in batch])
        events = drawer.draw(task.model, task.loras, plan)
        with closing(self._follow(batch, events)) as steps:
            for count, _ in enumerate(steps):
                if count == 0:  # the words of this batch are encoded
                    self._prepare_next(drawer)

    def _follow(
        self, batch: Sequence[Unit], events: Generator[StepEvent, None, None]
    ) -> Generator[None, None, None]:
        """Pass on what a drawer tells of a batch, until nobody wants to hear; yields every step."""
        with closing(events):
            for event in events:
                for row, index in enumerate(event.indices):
                    self._tell(batch[index], event, row)
                yield
                with self._changed:
                    self._sweep()
                    if not any(unit.live.task.id in self._live for unit in batch):
                        return

    def _begin(self, live: Live) -> None:
        with self._changed:  # another drawer may begin with its next picture
            if live.began is None:
                live.began = time.monotonic()
                live.delivery.put_start(live)

    def _tell(self, unit: Unit, event: StepEvent, row: int) -> None:
        live, task = unit.live, unit.live.task
        if live.over:
            return
        delivery = live.delivery
        delivery.wait_for_room()
        delivery.put_step(live, unit, event, row)
        if event.step == event.num_steps:
            delivery.put_picture(live, unit, event, row)
            with self._changed:
                live.missing.discard(unit.image.index)
                if not live.missing and not live.over:
                    self._end(live, Ended(task=task.id, how="done"))

    def _failed(self, batch: list[Unit], error: Exception) -> None:
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


def _live(task: Task, listener: Listener, delivery: Delivery) -> Live:
    missing = {image.index for image in task.plan.images}
    return Live(task=task, listener=listener, delivery=delivery, missing=missing)


def _renumbered(plan: GenerationPlan, images: Sequence[PlannedImage]) -> GenerationPlan:
    """A plan of some of the pictures, whose indices are their rows."""
    rows = tuple(replace(image, index=row) for row, image in enumerate(images))
    return replace(plan, images=rows)
