"""What commands share: results on stdout, a console on stderr, text made safe for a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from petzval.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MESSAGE_LIMIT = 2000
"""Characters of a message; a file's own words may be part of it."""


class PipeClosedError(Exception):
    """Whoever read stdout has gone away, as `head` does: no mistake, but no work is left."""


def stderr() -> Console:
    """Where progress and remarks go, so that stdout holds results alone."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """A table that a person reads; as wide as needed where no terminal sets a width."""
    from rich.console import Console

    terminal = Console()
    # Rich answers a closed pipe by itself, so it writes into a text here.
    text = io.StringIO()
    Console(
        file=text, highlight=False, width=terminal.width if terminal.is_terminal else 200
    ).print(table)
    print_line(text.getvalue().rstrip("\n"))


@contextmanager
def results() -> Generator[None]:
    """Around whatever writes to stdout: what cannot be written is answered, not a traceback.

    Raises:
        PipeClosedError: nobody reads it any more.
        RequestError: it takes nothing more, such as a file on a full disk.
    """
    try:
        yield
        # A process may be started without a stdout at all.
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
            sys.stdout.flush()
    except OSError as error:
        _forget_stdout()
        if isinstance(error, BrokenPipeError):
            raise PipeClosedError from error
        raise RequestError(
            f"the results cannot be written to stdout: {error.strerror or error}",
            "free some space, or send them elsewhere",
        ) from error


def print_line(text: object = "") -> None:
    """One line of results on stdout, at once."""
    with results():
        print(text)


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout."""
    print_line(json.dumps(value))


def printable(text: str, limit: int | None = None) -> str:
    """Text that a file may have brought, as one line without the power to command the terminal.

    Args:
        limit: what is longer is cut, and says so.
    """
    cut = "" if limit is None or len(text) <= limit else "…"
    return (
        "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in text[:limit]
        )
        + cut
    )


def complain(kind: str, text: str) -> None:
    """`kind: text` on stderr: an error, a hint or a warning, on one line."""
    print(f"{kind}: {printable(text, MESSAGE_LIMIT)}", file=sys.stderr)


@contextmanager
def stage_bars() -> Generator[Callable[[str, int, int], None]]:
    """One progress bar on stderr for each stage that is heard of."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, console=stderr())
    tasks = {}

    def advance(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total)
        progress.start()  # not before: what is refused at once has an empty line above it else
        progress.update(tasks[stage], completed=done, total=total)

    try:
        yield advance
    finally:
        if tasks:
            progress.stop()


@contextmanager
def plain_warnings() -> Generator[None]:
    """Show this package's warnings as `warning: …` on stderr, each one once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    complain("warning", str(message))


def _forget_stdout() -> None:
    """Send what is still buffered nowhere: Python would try again, and fail again, at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
