"""From the thread that draws to those who listen: events in order, with what is made for them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from petzval.inference.event import Pixels, StepEvent
from petzval.inference.plan import PlannedImage
from petzval.inference.task import Ended, Finished, Listener, Started, Stepped, Task

_LOGGER = logging.getLogger(__name__)

_BACKLOG = 64
"""Events that may wait for slow listeners before drawing waits for them, too."""

_PREVIEW_BACKLOG = 8
"""Events that may wait before previews are left out."""


@dataclass(kw_only=True, slots=True, eq=False)
class Live:
    """A task in the engine.

    Attributes:
        missing: indices of the pictures that are not drawn.
        submitted, began: moments, as `time.monotonic` counts.
        over: it has had its `Ended`, or is about to.
        ended: it has had it, and is told nothing more.
        failure: of decoding a picture.
        delivery: passes its events on; always the same one, so that they stay in order.
    """

    task: Task
    listener: Listener
    delivery: Delivery
    missing: set[int]
    submitted: float = field(default_factory=time.monotonic)
    began: float | None = None
    over: bool = False
    ended: bool = False
    failure: Exception | None = None

    @property
    def expired(self) -> bool:
        """Whether it has waited, or been drawn, for longer than its task allows."""
        now = time.monotonic()
        if self.began is None:
            limit = self.task.wait_seconds
            return limit is not None and now - self.submitted > limit
        limit = self.task.draw_seconds
        return limit is not None and now - self.began > limit


@dataclass(kw_only=True, slots=True, eq=False)
class Unit:
    """One picture of a task; `attempts` to draw it have failed, and then it is drawn alone."""

    live: Live
    image: PlannedImage
    attempts: int = 0


class Delivery:
    """A thread that calls listeners, in order, with what had to be computed for them.

    Until it is started what is put waits; `at_once` calls in the thread that puts.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._at_once = at_once
        self.thread = threading.Thread(target=self._run, name="petzval-deliver", daemon=True)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def put_start(self, live: Live) -> None:
        """Pass on that a task has begun."""
        self._put(live, lambda: live.listener(Started(task=live.task.id)))

    def put_end(self, live: Live, event: Ended) -> None:
        """Pass on how a task ended; a picture that could not be decoded makes it a failure."""

        def call() -> None:
            live.ended = True
            if event.how == "done" and live.failure is not None:
                live.listener(Ended(task=live.task.id, how="failed", error=live.failure))
            else:
                live.listener(event)

        self._put(live, call)

    def put_step(self, live: Live, unit: Unit, event: StepEvent, row: int) -> None:
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

        self._put(live, call)

    def put_picture(self, live: Live, unit: Unit, event: StepEvent, row: int) -> None:
        """Pass a finished picture on, decoded here where the drawer left that to us."""

        def call() -> None:
            try:
                images = event.images if event.finish is None else event.finish()
            except Exception as error:
                live.failure = error
                return
            image = replace(images[row], index=unit.image.index)
            live.listener(Finished(task=live.task.id, image=image))

        self._put(live, call)

    def wait_for_room(self) -> None:
        """Return when listeners are not too far behind."""
        while self._calls.qsize() > _BACKLOG:
            time.sleep(0.005)

    def end(self) -> None:
        """Return when all that was put before has been passed on."""
        self._calls.put(None)
        if self.thread.ident is not None:
            self.thread.join()

    def _put(self, live: Live, call: Callable[[], None]) -> None:
        def told() -> None:
            if not live.ended:  # a task may be cancelled while its next event is on its way
                call()

        if self._at_once:
            told()
        else:
            self._calls.put(told)

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
