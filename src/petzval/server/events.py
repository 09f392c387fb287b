"""Events on their way from the engine's threads to whoever listens over HTTP.

Numbers grow by one with each event; a listener that comes back names the last one it saw and gets
what it missed, as long as the history goes back so far and the server was not started anew.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

HISTORY = 4096
"""Events that are kept for listeners who come back."""

_FLEETING = frozenset({"progress", "preview", "partial"})
_SLOW = 256
"""Events that may wait for a listener before the fleeting ones are left out."""

_TOO_SLOW = 2048
"""Events that may wait for a listener before it is let go; it may come back for the rest."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Event:
    """Something that happened to a job.

    Attributes:
        id: of the event, for `Last-Event-ID`.
        kind: "status", "progress", "preview", "picture", "end"; or "partial", which is for the
            server itself.
        data: JSON; of a partial the pixels.
    """

    id: str
    number: int
    job: str
    owner: str
    kind: str
    data: Mapping[str, Any]

    def encode(self) -> bytes:
        """The event in the format of server-sent events; JSON has no line ends to inject."""
        return sse(self.kind, self.data, self.id)


def sse(kind: str, data: Mapping[str, Any], id: str | None = None) -> bytes:
    """One server-sent event."""
    head = "" if id is None else f"id: {id}\n"
    return f"{head}event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


class Hub:
    """Where events are published, from any thread, and listened to, in event loops."""

    def __init__(self, history: int = HISTORY) -> None:
        self._epoch = secrets.token_hex(4)
        self._number = 0
        self._lock = threading.Lock()
        self._history: deque[Event] = deque(maxlen=history)
        self._listeners: set[Subscription] = set()
        self._closed = False

    def publish(self, job: str, owner: str, kind: str, data: Mapping[str, Any]) -> None:
        """Tell all who listen to this job, or to all jobs of its owner."""
        with self._lock:
            self._number += 1
            event = Event(
                id=f"{self._epoch}-{self._number}",
                number=self._number,
                job=job,
                owner=owner,
                kind=kind,
                data=data,
            )
            if kind not in _FLEETING:
                self._history.append(event)
            for listener in list(self._listeners):
                listener.offer(event)

    def has_listeners(self, job: str, owner: str) -> bool:
        """Whether anybody outside would see what is published for a job."""
        with self._lock:
            return any(
                listener.wants(job, owner) and not listener.internal for listener in self._listeners
            )

    def subscribe(
        self,
        owner: str,
        *,
        job: str | None = None,
        after: str | None = None,
        internal: bool = False,
    ) -> Subscription:
        """Listen, from a running event loop.

        Args:
            job: to this one alone.
            after: id of the last event that was seen before.
            internal: hear partials, and no previews: they need not be made for this one.
        """
        listener = Subscription(self, owner, job, internal)
        with self._lock:
            missed = self._missed(after)
            listener.resumed = missed is not None
            for event in missed or ():
                listener.offer(event)
            self._listeners.add(listener)
            if self._closed:
                listener.end()
        return listener

    def close(self) -> None:
        """End all subscriptions once they have been read, those that come later, too."""
        with self._lock:
            self._closed = True
            for listener in self._listeners:
                listener.end()

    def forget(self, listener: Subscription) -> None:
        """Nobody reads it any more."""
        with self._lock:
            self._listeners.discard(listener)

    def _missed(self, after: str | None) -> list[Event] | None:
        """The kept events after one; None where that cannot be known."""
        epoch, _, digits = (after or "").partition("-")
        if epoch != self._epoch or not (digits.isascii() and digits.isdigit()):
            return None
        if len(digits) > 18 or int(digits) > self._number:
            return None
        number = int(digits)
        is_full = len(self._history) == self._history.maxlen
        if is_full and self._history[0].number > number + 1:
            return None
        return [event for event in self._history if event.number > number]


class Subscription:
    """One listener; a context, in which it is iterated over.

    Attributes:
        resumed: whether what was missed is known and comes first.
        internal: see `Hub.subscribe`.
    """

    def __init__(self, hub: Hub, owner: str, job: str | None, internal: bool) -> None:
        self.resumed = False
        self.internal = internal
        self._hub, self._owner, self._job = hub, owner, job
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._ended = False
        self._wake = asyncio.Event()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *error: object) -> None:
        self._hub.forget(self)

    def wants(self, job: str, owner: str) -> bool:
        """Whether a job's events are for this listener."""
        return owner == self._owner and self._job in (None, job)

    def offer(self, event: Event) -> None:
        """Add an event; called from any thread, with the hub's lock."""
        if not self.wants(event.job, event.owner) or self._ended:
            return
        if event.kind == ("preview" if self.internal else "partial"):
            return
        if len(self._events) >= _SLOW and event.kind in _FLEETING:
            return
        if len(self._events) >= _TOO_SLOW:
            self._ended = True
        else:
            self._events.append(event)
        self._notify()

    def end(self) -> None:
        """No more events come."""
        self._ended = True
        self._notify()

    def _notify(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._wake.set)

    async def events(self, pause: float) -> AsyncIterator[Event | None]:
        """Events as they come, and None after each pause without one."""
        while True:
            self._wake.clear()
            while self._events:
                yield self._events.popleft()
            if self._ended:
                return
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                yield None
