"""Where prompts come from: the argument, a file with one a line, or stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from petzval.errors import RequestError

LIMIT_BYTES = 64 << 20


def collect(argument: str | None, file: Path | None) -> list[str]:
    """The prompts of a call.

    Raises:
        RequestError: none, more than one source, or a file that cannot be read.
    """
    if argument is not None and file is not None:
        raise RequestError("a prompt and a file of prompts are both given", "give one of them")
    if file is not None:
        return _lines(_read(file), str(file))
    # A process may be started without a stdin at all.
    stdin: TextIO | None = sys.stdin
    if argument == "-" and stdin is None:
        raise RequestError("stdin is closed, so no prompt can be read from it", "give a prompt")
    if stdin is not None and (argument == "-" or (argument is None and not stdin.isatty())):
        return _lines(stdin.buffer.read(LIMIT_BYTES + 1), "stdin")
    if argument is None:
        raise RequestError(
            "no prompt", 'say what to draw: petzval generate "a red fox"; or --file, or --from'
        )
    return [argument]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error


def _lines(data: bytes, where: str) -> list[str]:
    """One prompt a line; blank lines are passed over."""
    if len(data) > LIMIT_BYTES:
        raise RequestError(f"{where}: more than {LIMIT_BYTES:,} bytes of prompts")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{where}, line {line}: not UTF-8 text", "save it as UTF-8") from error
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise RequestError(f"{where} holds no prompt", "write one prompt a line")
    return prompts
