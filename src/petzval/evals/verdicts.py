"""One line a picture: what was asked, what was seen, what was right. JSON lines, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from petzval.errors import DataError
from petzval.evals.drawing import Drawing, Progress
from petzval.evals.questions import Question
from petzval.inference.image import write_atomically
from petzval.scoring.scorer import Picture, Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A judged picture.

    Attributes:
        picture: key of the picture in its store.
        scorer: hash of the scorer's identity.
        checks: right or wrong for each thing asked; `reasons` says what was seen.
        chance: what a blind guess would get right, for each thing asked.
    """

    prompt_id: str
    number: str
    skill: str
    language: str
    trained: bool
    prompt: str
    seed: int
    picture: str
    scorer: str
    checks: Mapping[str, bool]
    reasons: Mapping[str, str]
    chance: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """True when everything asked is right."""
        return all(self.checks.values())


def judge(question: Question, seed: int, key: str, picture: Picture, scorer: Scorer) -> Row:
    """The row of one picture."""
    verdict = scorer.score(picture, question.expectation)
    return Row(
        prompt_id=question.prompt_id,
        number=question.number,
        skill=question.skill,
        language=question.language,
        trained=question.trained,
        prompt=question.prompt,
        seed=seed,
        picture=key,
        scorer=short_identity(scorer),
        checks=dict(verdict.checks),
        reasons=dict(verdict.reasons),
        chance=dict(scorer.chance(question.expectation)),
    )


def short_identity(scorer: Scorer) -> str:
    """The first 16 digits of a hash of a scorer's identity."""
    return hashlib.sha256(scorer.identity.encode()).hexdigest()[:16]


def judge_all(
    wanted: Sequence[Drawing],
    load: Callable[[str], Picture],
    scorer: Scorer,
    path: Path,
    progress: Progress | None = None,
) -> list[Row]:
    """Judge pictures into a file of JSON lines, in the order asked.

    Lines that are already there for the same question, picture and scorer are kept, and a line cut
    short by a kill is dropped. However often the work is stopped, the file ends up the same.

    Args:
        load: the picture of a key.
        path: the file; lines of other questions, pictures or scorers are dropped from it.

    Raises:
        DataError: a picture cannot be read.
        RequestError: the file cannot be written.
    """
    short = short_identity(scorer)
    known = {_key(row): row for row in _whole_lines(path) if row.scorer == short}
    wanted_keys = [(one.question.prompt_id, one.seed, one.key) for one in wanted]
    kept = [known[key] for key in wanted_keys if key in known]
    write_atomically(path, b"".join(_line(row) for row in kept))
    rows: dict[tuple[str, int, str], Row] = {_key(row): row for row in kept}
    with path.open("ab") as file:
        for done, (one, key) in enumerate(zip(wanted, wanted_keys, strict=True)):
            if key in rows:
                continue
            if progress is not None:
                progress("judge", done, len(wanted))
            row = judge(one.question, one.seed, one.key, load(one.key), scorer)
            rows[key] = row
            file.write(_line(row))
            file.flush()
    ordered = [rows[key] for key in wanted_keys]
    write_atomically(path, b"".join(_line(row) for row in ordered))
    return ordered


def read_rows(path: Path) -> list[Row]:
    """All rows of a finished file.

    Raises:
        DataError: it is missing, or a line is damaged.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}", "run: petzval evaluate") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            raise DataError(f"{path} line {number} is damaged", "run: petzval evaluate")
        rows.append(row)
    return rows


def _key(row: Row) -> tuple[str, int, str]:
    return (row.prompt_id, row.seed, row.picture)


def _line(row: Row) -> bytes:
    return (json.dumps(asdict(row), ensure_ascii=False) + "\n").encode()


def _parse(line: bytes) -> Row | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        row = Row(**fields)
        valid = row.checks.keys() == row.chance.keys()
    except (ValueError, TypeError, AttributeError):
        return None
    return row if valid else None


def _whole_lines(path: Path) -> list[Row]:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    rows = [_parse(line) for line in lines if line.endswith(b"\n")]
    return [row for row in rows if row is not None]
