"""Names of tensors translated by a table, in both directions.

A row pairs a published name with another program's. Braces stand for parts that both have:

    {i} {j}   a whole number
    {p}       weight or bias
    {i!3}     the same number counted from the other end: 3 - i

so that "decoder.up_blocks.{i}.resnets.{j}.norm1.{p}" and "decoder.up.{i!3}.block.{j}.norm1.{p}" say
all there is to say about forty-eight tensors, once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PART = re.compile(r"\{(?P<name>\w+)(?:!(?P<last>\d+))?\}")
_NUMBER, _PARAMETER = r"\d{1,4}", "weight|bias"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a table: the published name, and the other program's."""

    ours: str
    theirs: str


class KeyMap:
    """A table of names, complete in both directions: what one side says, the other can.

    Args:
        rows: the first that fits is taken; no two may fit one name.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self._to_ours = [(_pattern(row.theirs), row.theirs, row.ours) for row in self.rows]
        self._to_theirs = [(_pattern(row.ours), row.ours, row.theirs) for row in self.rows]

    def to_ours(self, key: str) -> str | None:
        """The published name; None where the table does not know this one."""
        return _translate(key, self._to_ours)

    def to_theirs(self, key: str) -> str | None:
        """The other program's name; None where the table does not know this one."""
        return _translate(key, self._to_theirs)


def _pattern(form: str) -> re.Pattern[str]:
    text, position = "", 0
    for match in _PART.finditer(form):
        kind = _PARAMETER if match["name"] == "p" else _NUMBER
        text += re.escape(form[position : match.start()]) + f"(?P<{match['name']}>{kind})"
        position = match.end()
    return re.compile(text + re.escape(form[position:]))


def _translate(key: str, table: Sequence[tuple[re.Pattern[str], str, str]]) -> str | None:
    for pattern, source, target in table:
        match = pattern.fullmatch(key)
        if match is None:
            continue
        parts = _read_parts(match, source)
        if parts is not None:
            return _write_parts(target, parts)
    return None


def _read_parts(match: re.Match[str], form: str) -> dict[str, str] | None:
    parts: dict[str, str] = {}
    for part in _PART.finditer(form):
        value = match[part["name"]]
        flipped = value if part["last"] is None else _flip(value, part["last"])
        if flipped is None:
            return None
        parts[part["name"]] = flipped
    return parts


def _write_parts(form: str, parts: dict[str, str]) -> str | None:
    written, position = "", 0
    for part in _PART.finditer(form):
        value = parts[part["name"]]
        flipped = value if part["last"] is None else _flip(value, part["last"])
        if flipped is None:
            return None
        written += form[position : part.start()] + flipped
        position = part.end()
    return written + form[position:]


def _flip(value: str, last: str) -> str | None:
    """Counted from the other end; None beyond it."""
    number = int(last) - int(value)
    return None if number < 0 else str(number)
