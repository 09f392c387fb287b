"""How a command is stopped: Ctrl-C and SIGTERM unwind what is under way, whatever it is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from petzval.errors import TerminatedError

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
_ENDS = {signal.SIGINT: ("interrupted", EXIT_INTERRUPTED)}
_ENDS[signal.SIGTERM] = ("terminated", EXIT_TERMINATED)

_CLEARED_LINE = "\r\x1b[K\x1b[?25h"
"""Of a terminal: the line's start, the line away, the cursor shown."""


@contextmanager
def stoppable() -> Generator[list[int]]:
    """SIGINT raises KeyboardInterrupt, SIGTERM `TerminatedError`, where nobody decided otherwise.

    Yields the signals that were heard: C++ underneath may turn such an exception into one of its
    own. While torch is imported the process leaves at once.
    """
    heard: list[int] = []
    plain = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {each for each, handler in plain.items() if signal.getsignal(each) is handler}
    if threading.current_thread() is not threading.main_thread():
        ours = set()
    handle = _handler(os.getpid(), heard)
    for each in ours:
        signal.signal(each, handle)
    try:
        yield heard
    finally:
        for each in ours:
            signal.signal(each, plain[each])


def say_end(number: int) -> int:
    """One word on stderr for the signal that ended the command; returns the exit code."""
    word, code = _ENDS[signal.Signals(number)]
    print(word, file=sys.stderr)
    return code


def _handler(own: int, heard: list[int]) -> Callable[[int, FrameType | None], None]:
    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != own:  # a forked worker has nothing to unwind
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        heard.append(number)
        _leave_where_torch_loads(number)
        raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    return stop


def _leave_where_torch_loads(number: int) -> None:
    """End the process in the midst of torch's import, where nothing is under way yet.

    An exception that is raised there goes through C++ that does not expect it, and aborts.
    """
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if not getattr(spec, "_initializing", False):
        return
    word, code = _ENDS[signal.Signals(number)]
    # A terminal's line may have a spinner, for which its cursor was hidden.
    os.write(2, f"{_CLEARED_LINE if os.isatty(2) else ''}{word}\n".encode())
    os._exit(code)
