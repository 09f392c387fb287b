"""What captioning asked and was answered, line by line: paid once, kept for good.

    captions/part-00000.jsonl       one JSON object an answer, for the rows of that manifest part

Lines are only ever appended, and each has reached the disk before its answer is used. A program
killed while it wrote leaves a last line without an end; the next one cuts it off and asks again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from petzval.config import from_mapping
from petzval.errors import ConfigError, DataError

FINAL: frozenset[str] = frozenset({"caption", "refusal", "empty", "overlong"})
"""Statuses that settle a question; the others are asked again by the next run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer.

    Attributes:
        id: of the row.
        model: that was asked.
        instruction: hash of what it was told.
        length: "dense" or "brief".
        status: "caption"; or what was no caption: "refusal", "empty", "overlong" (no sentence
            ends within the limit), "rejected" (the endpoint takes no such picture), "failed"
            (no answer after all attempts).
        text: the caption, "" for everything else.
        reason: what was wrong with it, or what was done to it.
        prompt_tokens, completion_tokens: as the endpoint counted, or what is assumed where it
            may have worked without telling; over all attempts.
    """

    id: str
    model: str
    instruction: str
    length: str
    status: str
    text: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def question(self) -> tuple[str, str, str]:
        """What is never paid for twice: (id, model, instruction)."""
        return self.id, self.model, self.instruction


class Ledger:
    """The entries of one manifest part, opened to be written to by one program at a time.

    Args:
        path: made, with its folder, by the first entry.

    Raises:
        DataError: a line other than a torn last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settled: dict[tuple[str, str, str], Entry] = {}
        self._file: BinaryIO | None = None
        self.entries = 0
        for entry in read_ledger(path):
            self._take(entry)

    def settled(self, question: tuple[str, str, str]) -> Entry | None:
        """The final answer to a question, if there is one."""
        return self._settled.get(question)

    def add(self, entry: Entry) -> None:
        """Append an entry; it is on the disk when this returns.

        Raises:
            DataError: the file cannot be written.
        """
        line = json.dumps(asdict(entry), sort_keys=True, ensure_ascii=False) + "\n"
        try:
            if self._file is None:
                self._file = _open_at_end(self.path)
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._take(entry)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, entry: Entry) -> None:
        self.entries += 1
        if entry.status in FINAL:
            self._settled.setdefault(entry.question, entry)


def read_ledger(path: Path) -> Iterator[Entry]:
    """The whole lines of a ledger; none if there is no file. A torn last line is passed over.

    Raises:
        DataError: a whole line is damaged.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value: Any = json.loads(line)
                entry = from_mapping(Entry, value, where=f"{path}:{number}", ignore_unknown=True)
            except (ValueError, ConfigError) as error:
                raise DataError(
                    f"{path}:{number}: not an entry of a caption ledger",
                    "restore the file, or remove this line: its picture is then asked about again",
                ) from error
            yield entry


def _open_at_end(path: Path) -> BinaryIO:
    """Open to append after the last whole line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("r+b" if path.exists() else "w+b")
    size = file.seek(0, os.SEEK_END)
    tail = b""
    # A line is a caption: a few kilobytes. Read backwards until one ends.
    while size and b"\n" not in tail:
        step = min(size, 1 << 16)
        size -= step
        file.seek(size)
        tail = file.read(step) + tail
    file.seek(size + tail.rfind(b"\n") + 1)
    file.truncate()
    return file
