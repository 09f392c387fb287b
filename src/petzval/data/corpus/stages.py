"""A stage: rows in, columns out; and the engines that run one over a corpus.

The unit of work is a part. Its marker holds the stage's version, its settings and a hash of its
input; a part whose marker fits is not run again. So a stage can be killed at any moment and run
again, with any engine and any number of workers, and the bytes at the end are the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pyarrow as pa

from petzval.config import to_mapping
from petzval.data.corpus.manifest import Corpus, hash_file
from petzval.data.corpus.pictures import PictureReader
from petzval.errors import DataError, MissingExtraError, PetzvalError

Engine: TypeAlias = str
"""A name in `_ENGINES`: "local" or "ray"."""
Report: TypeAlias = Callable[[str, int, int], None]
"""Called with (stage, parts done, parts in all)."""

Work: TypeAlias = Callable[[int], tuple[str, str] | None]


@runtime_checkable
class Described(Protocol):
    """What decides whether a part's columns are still good."""

    @property
    def name(self) -> str:
        """A file name, and the prefix of the columns."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages whose columns are read; their outputs are part of the input's hash."""
        ...

    @property
    def version(self) -> int:
        """Raised when the same settings and input would give other columns."""
        ...

    @property
    def settings(self) -> Any:
        """A frozen dataclass of JSON values. What a model file decides is here as its hash."""
        ...


@runtime_checkable
class Stage(Described, Protocol):
    """Works on each part alone. Must be picklable, and a pure function of its rows."""

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """The stage's columns: one row for each of `rows`, in order, without `id`.

        Args:
            rows: base columns, and `<stage>.<column>` of each needed stage.
            pictures: opens the rows' pictures; a picture it refuses must not end the stage.
        """
        ...


@runtime_checkable
class CorpusStage(Described, Protocol):
    """Has to see all parts at once; runs in one process."""

    def run_corpus(self, parts: Sequence[pa.Table]) -> Sequence[pa.Table]:
        """The stage's columns for each part, as `Stage.run` gives them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """What a call did.

    Attributes:
        stage: its name.
        num_parts: parts of the corpus.
        num_run: parts that were run; the others were done already.
    """

    stage: str
    num_parts: int
    num_run: int


def run_stage(
    corpus: Corpus,
    stage: Stage,
    *,
    engine: Engine = "local",
    workers: int = 1,
    report: Report | None = None,
) -> StageRun:
    """Run a stage on every part that is not done.

    Args:
        corpus: where rows are read and columns written. With Ray on several machines its folder,
            and the pictures, must be at the same path on all of them.
        stage: what to run.
        engine: "local", processes of this machine; or "ray", Ray Data, on the cluster that
            RAY_ADDRESS names if it is set.
        workers: parts that are worked on at the same time; 1 with "local" starts no process.
        report: told of progress.

    Raises:
        DataError: a needed stage has not run, the engine is unknown, or another program is writing.
        MissingExtraError: Ray is not installed.
    """
    with corpus.writing():
        parts = corpus.parts()
        todo = [part for part in parts if not _is_done(corpus, stage, part)]
        done = len(parts) - len(todo)
        if report is not None:
            report(stage.name, done, len(parts))
        for _ in run_numbers(partial(_run_part, corpus, stage), todo, engine, workers):
            done += 1
            if report is not None:
                report(stage.name, done, len(parts))
    return StageRun(stage=stage.name, num_parts=len(parts), num_run=len(todo))


def run_numbers(
    work: Work, numbers: Sequence[int], engine: Engine = "local", workers: int = 1
) -> Iterator[int]:
    """Do numbered work on an engine; yields each number that is done, in any order.

    Args:
        work: picklable. Returns None, or message and hint of a user's mistake.
        numbers: what to call it with.

    Raises:
        DataError: the engine is unknown, or the work returned a mistake.
        MissingExtraError: Ray is not installed.
    """
    if engine not in _ENGINES:
        raise DataError(f"unknown engine {engine[:40]!r}", f"engines: {', '.join(_ENGINES)}")
    return _ENGINES[engine](work, numbers, workers)


def run_corpus_stage(
    corpus: Corpus, stage: CorpusStage, *, report: Report | None = None
) -> StageRun:
    """`run_stage` for a stage that sees all parts: all of them are run, or none."""
    with corpus.writing():
        parts = corpus.parts()
        source = _digest([_input_hash(corpus, stage, part) for part in parts])
        markers = {part: _marker(stage, part, source) for part in parts}
        todo = [part for part in parts if not _fits(corpus, stage, part, markers[part])]
        if report is not None:
            report(stage.name, len(parts) - len(todo), len(parts))
        if todo:
            tables = [corpus.read(part, stage.needs) for part in parts]
            results = stage.run_corpus(tables)
            for part, result in zip(parts, results, strict=True):
                corpus.write_columns(stage.name, part, result, markers[part])
                if report is not None:
                    report(stage.name, part + 1, len(parts))
    return StageRun(stage=stage.name, num_parts=len(parts), num_run=len(parts) if todo else 0)


# ── one part ─────────────────────────────────────────────────────────────────────────────────────


def _run_part(corpus: Corpus, stage: Stage, part: int) -> tuple[str, str] | None:
    """Run and write one part, in whatever process; a user's mistake is returned, to travel."""
    try:
        rows = corpus.read(part, stage.needs)
        marker = _marker(stage, part, _input_hash(corpus, stage, part))
        result = stage.run(rows, PictureReader(corpus.folder))
        corpus.write_columns(stage.name, part, result, marker)
    except PetzvalError as error:
        return error.message, error.hint
    return None


def _is_done(corpus: Corpus, stage: Stage, part: int) -> bool:
    return _fits(corpus, stage, part, _marker(stage, part, _input_hash(corpus, stage, part)))


def _fits(corpus: Corpus, stage: Described, part: int, marker: Mapping[str, Any]) -> bool:
    found = corpus.marker(stage.name, part)
    return found is not None and all(found.get(name) == value for name, value in marker.items())


def _marker(stage: Described, part: int, source: str) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "part": part,
        "version": stage.version,
        "settings": to_mapping(stage.settings),
        "input": source,
    }


def _input_hash(corpus: Corpus, stage: Described, part: int) -> str:
    hashes = {"manifest": hash_file(corpus.manifest_path(part))}
    for name in stage.needs:
        marker = corpus.marker(name, part)
        if marker is None:
            raise DataError(
                f"{corpus.folder}: the stage {stage.name!r} needs {name!r}, which has not run on "
                f"part {part}",
                f"petzval data clean {corpus.folder}",
            )
        hashes[name] = marker["output"]
    return _digest(hashes)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ── engines: (work, parts, workers) -> one item for each part that is done, in any order ─────────


def _run_here(work: Work, parts: Sequence[int]) -> Iterator[int]:
    for part in parts:
        _raise(work(part))
        yield part


def _run_local(work: Work, parts: Sequence[int], workers: int) -> Iterator[int]:
    if workers <= 1 or len(parts) <= 1:
        yield from _run_here(work, parts)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    others = set(active_children())
    # Fresh processes: a fork would copy the threads' locks of whatever else is loaded.
    pool = ProcessPoolExecutor(min(workers, len(parts)), get_context("spawn"), _start_worker)
    try:
        futures = {pool.submit(work, part): part for part in parts}
        for future in as_completed(futures):
            _raise(future.result())
            yield futures[future]
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process ended before its work was done",
            "it may have run out of memory: try fewer workers; what is done is kept",
        ) from error
    except BaseException:
        # Parts in flight are given up: their files are drafts until they are whole.
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the process that started this one, and end when that one is gone.

    Ctrl-C reaches every process of a terminal; the one that started the others ends them. Killed,
    it cannot: its workers would write on beside those of the next run, and wait for work for ever.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_ray(work: Work, parts: Sequence[int], workers: int) -> Iterator[int]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "cluster") from error
    if not parts:
        return
    if not ray.is_initialized():
        # Where RAY_ADDRESS names a cluster, its size is its own affair.
        num_cpus = None if os.environ.get("RAY_ADDRESS") else workers
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(row: dict[str, Any]) -> dict[str, Any]:
        message, hint = work(row["item"]) or ("", "")
        return {"part": row["item"], "message": message, "hint": hint}

    dataset = ray.data.from_items(list(parts), override_num_blocks=len(parts))
    for row in dataset.map(run, compute=ray.data.TaskPoolStrategy(workers)).iter_rows():
        _raise((row["message"], row["hint"]) if row["message"] else None)
        yield int(row["part"])


def _raise(failure: tuple[str, str] | None) -> None:
    if failure is not None:
        raise DataError(*failure)


_ENGINES: Mapping[str, Callable[[Work, Sequence[int], int], Iterator[int]]] = {
    "local": _run_local,
    "ray": _run_ray,
}
