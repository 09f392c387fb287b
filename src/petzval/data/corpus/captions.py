"""The stages `captions-dense`, `-brief` and `-mixed`: a caption for every kept picture.

Columns, one row for each of the manifest's:

    text      the caption, "" where there is none
    status    "caption"; "dropped" (by a cleaning step, not asked about); "unreadable"; or what the
              captioner gave in its place, see `petzval.data.corpus.ledger.Entry`
    reason    why there is none, or what was done to it
    length    "dense" or "brief"
    model     who wrote it

Answers go to a ledger first (`ledger`), so a run can be stopped at any moment and the next one pays
for nothing twice: at most for the questions that were under way. A part's columns are written once
all its rows have an answer; what failed is asked again by the next run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from petzval.data.corpus.budget import BudgetSpent, Tokens
from petzval.data.corpus.captioner import Captioner, Length, Mode, length_of
from petzval.data.corpus.ledger import Entry, Ledger, read_ledger
from petzval.data.corpus.manifest import BASE, Corpus, hash_file
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.verdicts import kept
from petzval.data.decode import RefusedPicture
from petzval.errors import DataError

COLUMNS = ("text", "status", "reason", "length", "model")
_VERSION = 1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRun:
    """What a call did.

    Attributes:
        counts: rows by status over all parts that are whole.
        num_asked: questions that got an answer in this run.
        num_parts, num_whole: parts of the corpus, and those whose columns are there.
        spent: tokens over all runs.
        stopped: the budget did not allow another question.
    """

    counts: Mapping[str, int]
    num_asked: int
    num_parts: int
    num_whole: int
    spent: Tokens
    stopped: bool


def stage_name(mode: Mode) -> str:
    """The stage that holds the captions of a mode; the three can stand side by side."""
    return f"captions-{mode}"


def ledger_path(corpus: Corpus, part: int) -> Path:
    """The ledger of a part."""
    return corpus.folder / "captions" / f"part-{part:05d}.jsonl"


def spent_so_far(corpus: Corpus) -> Tokens:
    """Tokens of all entries of all ledgers."""
    prompt = written = 0
    for part in corpus.parts():
        for entry in read_ledger(ledger_path(corpus, part)):
            prompt, written = prompt + entry.prompt_tokens, written + entry.completion_tokens
    return prompt, written


def cleaning_stages(corpus: Corpus, part: int) -> tuple[str, ...]:
    """Stages that left a `keep` column for a part.

    Raises:
        DataError: there is none: the corpus has not been cleaned.
    """
    found = tuple(
        stage
        for stage in corpus.stages()
        if (path := corpus.columns_path(stage, part)).is_file()
        and "keep" in pq.read_schema(path).names
    )
    if not found:
        raise DataError(
            f"{corpus.folder}: part {part} has not been cleaned",
            f"run: petzval data clean {corpus.folder}",
        )
    return found


def caption_corpus(
    corpus: Corpus,
    captioner: Captioner,
    *,
    mode: Mode = "dense",
    concurrency: int = 8,
    progress: Progress | None = None,
) -> CaptionRun:
    """Caption every kept picture that has no answer yet, and write the columns of whole parts.

    Args:
        corpus: cleaned; which rows are kept is read from its cleaning steps.
        captioner: whom to ask.
        mode: "dense", "brief", or "mixed": half of either, by a hash of the id.
        concurrency: questions under way at the same time, at least 1.
        progress: told of pictures that are done.

    Raises:
        DataError: the corpus has not been cleaned, another program is writing, a ledger is
            damaged, or the captioner cannot be asked at all. What was answered is kept.
    """
    if concurrency < 1:
        raise DataError(f"concurrency is {concurrency}", "at least one question at a time")
    with corpus.writing():
        parts = corpus.parts()
        for part in parts:
            cleaning_stages(corpus, part)
        run = _Run(corpus, captioner, mode, progress)
        asyncio.run(run.ask(concurrency))
    spent = spent_so_far(corpus)
    return CaptionRun(
        counts=dict(sorted(run.counts.items())),
        num_asked=run.num_asked,
        num_parts=len(parts),
        num_whole=run.num_whole,
        spent=spent,
        stopped=run.stopped,
    )


# ── one run ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True, kw_only=True)
class _Part:
    """A part whose rows are being answered."""

    number: int
    rows: list[dict[str, Any]]
    keep: list[bool]
    ledger: Ledger
    answers: dict[str, Entry] = field(default_factory=dict[str, Entry])
    num_open: int = 0


_Question = tuple[_Part, dict[str, Any], Length]


class _Run:
    def __init__(
        self, corpus: Corpus, captioner: Captioner, mode: Mode, progress: Progress | None
    ) -> None:
        self._corpus, self._captioner = corpus, captioner
        self._mode: Mode = mode
        self._progress = progress
        self._ledgers: list[Ledger] = []
        self._reader = PictureReader(corpus.folder)
        self._instructions: dict[Length, str] = {
            "dense": _hash(captioner.instruction("dense")),
            "brief": _hash(captioner.instruction("brief")),
        }
        self.counts: Counter[str] = Counter()
        self.num_asked = 0
        self.num_whole = 0
        self.stopped = False
        self._done, self._total = 0, 0

    async def ask(self, concurrency: int) -> None:
        """Ask all that is open. When one fails no more is asked, and the others are heard out."""
        questions = self._questions()
        workers = [self._work(questions) for _ in range(concurrency)]
        try:
            results = await asyncio.gather(*workers, return_exceptions=True)
        finally:
            await self._captioner.close()
            for ledger in self._ledgers:
                ledger.close()
        failures = [each for each in results if each is not None]
        if failures:
            raise failures[0]

    async def _work(self, questions: Iterator[_Question]) -> None:
        try:
            while not self.stopped:
                question = next(questions, None)
                if question is None:
                    return
                await self._answer(*question)
        except BudgetSpent:
            self.stopped = True
        except BaseException:
            self.stopped = True
            raise

    def _questions(self) -> Iterator[_Question]:
        """What is open, part by part; parts without a question are finished on the way."""
        for number in self._corpus.parts():
            part = self._open(number)
            wanted: list[tuple[dict[str, Any], Length]] = [
                (row, length_of(row["id"], self._mode))
                for row, keep in zip(part.rows, part.keep, strict=True)
                if keep
            ]
            for row, length in wanted:
                question = row["id"], self._captioner.model, self._instructions[length]
                settled = part.ledger.settled(question)
                if settled is not None:
                    part.answers[row["id"]] = settled
            still_open = [each for each in wanted if each[0]["id"] not in part.answers]
            self._total += len(wanted)
            self._report(len(wanted) - len(still_open))
            part.num_open = len(still_open)
            if not still_open:
                self._finish(part)
            for row, length in still_open:
                yield part, row, length

    def _open(self, number: int) -> _Part:
        table = self._corpus.read(number, cleaning_stages(self._corpus, number))
        ledger = Ledger(ledger_path(self._corpus, number))
        self._ledgers.append(ledger)
        return _Part(
            number=number,
            rows=table.select(BASE.names).to_pylist(),
            keep=kept(table).tolist(),
            ledger=ledger,
        )

    async def _answer(self, part: _Part, row: dict[str, Any], length: Length) -> None:
        captioner = self._captioner
        entry = Entry(
            id=row["id"],
            model=captioner.model,
            instruction=self._instructions[length],
            length=length,
            status="unreadable",
        )
        try:
            picture = None
            if captioner.needs_pictures:
                picture = await asyncio.to_thread(self._reader.load, row)
        except RefusedPicture as error:
            part.answers[row["id"]] = replace(entry, reason=error.reason)
        else:
            answer = await captioner.describe(row, picture, length)
            judged = answer.judged
            entry = replace(
                entry,
                status=judged.status,
                text=judged.text,
                reason=judged.reason,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
            )
            part.ledger.add(entry)
            part.answers[row["id"]] = entry
            self.num_asked += 1
        part.num_open -= 1
        self._report(1)
        if part.num_open == 0:
            self._finish(part)

    def _finish(self, part: _Part) -> None:
        """Write the columns of a part whose rows all have an answer."""
        part.ledger.close()
        self._ledgers.remove(part.ledger)
        dropped = Entry(id="", model="", instruction="", length="", status="dropped")
        entries = [part.answers.get(row["id"], dropped) for row in part.rows]
        table = pa.table(
            {
                name: pa.array([getattr(entry, name) for entry in entries], pa.string())
                for name in COLUMNS
            }
        )
        corpus, stage = self._corpus, stage_name(self._mode)
        inputs = {"manifest": hash_file(corpus.manifest_path(part.number))}
        for name in cleaning_stages(corpus, part.number):
            inputs[name] = hash_file(corpus.columns_path(name, part.number))
        said = {"model": self._captioner.model, "instructions": self._instructions}
        marker = {
            "stage": stage,
            "part": part.number,
            "version": _VERSION,
            "settings": _hash(json.dumps(said, sort_keys=True)),
            "input": _hash(json.dumps(inputs, sort_keys=True)),
            "answers": _hash(json.dumps(table.to_pydict(), sort_keys=True)),
        }
        found = corpus.marker(stage, part.number)
        if found is None or any(found.get(name) != value for name, value in marker.items()):
            corpus.write_columns(stage, part.number, table, marker)
        self.counts.update(entry.status for entry in entries)
        self.num_whole += 1

    def _report(self, more: int) -> None:
        self._done += more
        if self._progress is not None:
            self._progress("captions", self._done, self._total)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
