"""Signs of life, and the wish to stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from petzval.errors import TerminatedError

HEARTBEAT = "heartbeat.json"


class Heartbeat:
    """A small file that a supervisor reads: when it is old, the run hangs and can be restarted.

    It holds `step`, `time` (seconds since 1970) and `pid`. A rank that is gone stops the others at
    their next collective, so one rank's heart speaks for all.

    Args:
        folder: of the run.
        every: seconds between beats, at least.
    """

    def __init__(self, folder: Path, *, every: float = 5.0) -> None:
        self.path = folder / HEARTBEAT
        self._every = every
        self._last = -every

    def beat(self, step: int) -> None:
        """Write the file, unless the last beat is recent."""
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        draft = self.path.with_name(f".{HEARTBEAT}")
        content = {"step": step, "time": time.time(), "pid": os.getpid()}
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.rename(self.path)


_ended_by: list[int] = []
"""The signal that ended the last training of this process; empty where none did."""


def interruption() -> KeyboardInterrupt:
    """What to raise when a training was interrupted: by whom decides the exit code."""
    return TerminatedError() if signal.SIGTERM in _ended_by else KeyboardInterrupt()


@contextmanager
def stop_signal() -> Generator[threading.Event]:
    """An event that SIGINT and SIGTERM set; in other threads than the main one it never is."""
    _ended_by.clear()
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        _ended_by.append(number)
        stop.set()

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
