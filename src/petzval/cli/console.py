"""What commands share: a console on stderr, warnings as one line, text made safe for a terminal."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def stderr() -> Console:
    """Where progress and remarks go, so that stdout holds results alone."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """For tables that a person reads; as wide as needed where no terminal sets a width."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout."""
    print(json.dumps(value), flush=True)


def printable(text: str) -> str:
    """Text that a file may have brought, without the power to command the terminal."""
    return "".join(
        letter
        if letter.isprintable() or letter == "\n"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


@contextmanager
def stage_bars() -> Generator[Callable[[str, int, int], None]]:
    """One progress bar on stderr for each stage that is heard of."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=stderr()) as progress:
        tasks = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield advance


@contextmanager
def plain_warnings() -> Generator[None]:
    """Show this package's warnings as `warning: …` on stderr, each one once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {printable(str(message))}", file=sys.stderr)
