"""Stages: each part once, the same bytes whatever the engine, and no harm from a sudden end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from petzval.data.corpus.filters import Band, BandFilter, Measure, MeasureSettings
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.stages import StageRun, run_corpus_stage, run_stage
from petzval.errors import DataError, MissingExtraError
from tests.conftest import REPOSITORY
from tests.data.corpus.planted import jpeg, make_corpus, scene, tree
from tests.support import PATIENCE

PROGRAM = Path(__file__).with_name("crash_program.py")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 24 pictures in six parts, to be copied."""
    folder = tmp_path_factory.mktemp("template") / "corpus"
    files = {f"{n:02d}.jpg": jpeg(scene(n, 120, 160)) for n in range(24)}
    make_corpus(folder, files, rows_per_part=4)
    return folder


@pytest.fixture
def corpus(template: Path, tmp_path: Path) -> Corpus:
    """A fresh copy."""
    shutil.copytree(template, tmp_path / "corpus")
    return Corpus.open(tmp_path / "corpus")


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the stage leaves when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed") / "corpus"
    shutil.copytree(template, folder)
    run_stage(Corpus.open(folder), Measure())
    return tree(folder)


def program(*arguments: str | Path, environment: dict[str, str] | None = None) -> Any:
    """Start the crash program; its lines of stdout can be read as they come."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), **(environment or {})},
    )


@dataclass(frozen=True)
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True)
class Count:
    """Counts its calls, and can fail on a part."""

    settings: NoSettings = NoSettings()
    name: str = "count"
    needs: tuple[str, ...] = ()
    version: int = 1
    calls: list[int] = field(default_factory=list[int])
    error: Exception | None = None

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """Lengths of the files."""
        self.calls.append(rows.num_rows)
        if self.error is not None and len(self.calls) == 3:
            raise self.error
        return pa.table({"bytes": [len(pictures.read(row)) for row in rows.to_pylist()]})


def test_a_stage_runs_on_each_part_once(corpus: Corpus) -> None:
    stage = Count()
    heard: list[tuple[str, int, int]] = []
    first = run_stage(corpus, stage, report=lambda *words: heard.append(words))
    assert first == StageRun(stage="count", num_parts=6, num_run=6) and stage.calls == [4] * 6
    assert heard == [("count", done, 6) for done in range(7)]
    assert run_stage(corpus, stage).num_run == 0 and len(stage.calls) == 6
    sizes = [row["count.bytes"] for row in corpus.read(3, ("count",)).to_pylist()]
    assert sizes == corpus.read(3)["num_bytes"].to_pylist()


def test_a_new_version_or_setting_or_input_runs_again(corpus: Corpus) -> None:
    run_stage(corpus, Measure())
    band = BandFilter(name="clarity", settings=Band(minimum=1.0))
    assert run_stage(corpus, band).num_run == 6
    assert run_stage(corpus, BandFilter(name="clarity", settings=Band(minimum=2.0))).num_run == 6
    assert run_stage(corpus, band).num_run == 6
    newer = BandFilter(name="clarity", settings=Band(minimum=1.0), version=2)
    assert run_stage(corpus, newer).num_run == 6
    assert run_stage(corpus, Measure(settings=MeasureSettings(clarity_side=64))).num_run == 6
    assert run_stage(corpus, newer).num_run == 6
    assert run_stage(corpus, newer).num_run == 0


def test_a_lost_file_is_made_again_alone(corpus: Corpus, undisturbed: dict[str, bytes]) -> None:
    run_stage(corpus, Measure())
    corpus.columns_path("pixels", 2).unlink()
    corpus.marker_path("pixels", 4).unlink()
    assert run_stage(corpus, Measure()).num_run == 2
    assert tree(corpus.folder) == undisturbed


def test_a_stage_needs_what_it_reads(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="the stage 'area' needs 'pixels', which has not run"):
        run_stage(corpus, BandFilter(name="area", settings=Band()))


def test_a_users_mistake_on_a_part_ends_the_stage_and_keeps_the_others(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="mistake") as error:
        run_stage(corpus, Count(error=DataError("mistake", "mend it")))
    assert error.value.hint == "mend it"
    assert [corpus.marker("count", part) is not None for part in corpus.parts()] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    assert run_stage(corpus, Count()).num_run == 4


def test_a_bug_is_not_dressed_up(corpus: Corpus) -> None:
    with pytest.raises(ZeroDivisionError):
        run_stage(corpus, Count(error=ZeroDivisionError()))


def test_several_processes_leave_the_same_bytes(
    corpus: Corpus, undisturbed: dict[str, bytes]
) -> None:
    assert run_stage(corpus, Measure(), workers=2).num_run == 6
    assert tree(corpus.folder) == undisturbed


@pytest.mark.parametrize(
    ("workers", "end"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)]
)
def test_ended_at_any_moment_and_run_again_the_bytes_are_the_same(
    corpus: Corpus, undisturbed: dict[str, bytes], workers: int, end: signal.Signals
) -> None:
    process = program("stage", corpus.folder, str(workers))
    for line in process.stdout:
        if int(line) >= 2:
            os.killpg(process.pid, end)
            break
    # A worker that is still starting may die of the same Ctrl-C first: then it is an error, 1.
    ends = {-end, 1} if end is signal.SIGINT and workers > 1 else {-end}
    assert process.wait(PATIENCE) in ends
    process.stdout.close()
    done = [part for part in corpus.parts() if corpus.marker("pixels", part) is not None]
    assert 2 <= len(done) < 6
    (corpus.columns_path("pixels", 5).with_name("part-00005.parquet.draft")).write_bytes(b"half")
    assert run_stage(corpus, Measure()).num_run == 6 - len(done)
    assert tree(corpus.folder) == undisturbed


def test_workers_end_with_the_process_that_started_them(corpus: Corpus) -> None:
    """Killed alone, it cannot end them; the next run must not find them at work."""
    process = program("stage", corpus.folder, "2")
    # Workers hold the other end of the pipe, too: it ends with the last of them.
    reader = threading.Thread(target=process.stdout.read, daemon=True)
    try:
        # By then both are at work.
        assert any(int(line) >= 1 for line in process.stdout)
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        reader.start()
        reader.join(PATIENCE)
        assert not reader.is_alive(), "a worker is still there"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        reader.join(PATIENCE)
        process.stdout.close()


@pytest.mark.parametrize("after", ["fsync", "replace"])
def test_a_death_at_any_step_of_writing_leaves_nothing_half(
    corpus: Corpus, undisturbed: dict[str, bytes], after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        """Nothing catches it."""

    calls = 0
    original = getattr(os, after)

    def dying(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        original(*arguments)
        if calls == 4:
            raise Death

    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(os, after, dying)
        run_stage(corpus, Measure())
    run_stage(corpus, Measure())
    assert tree(corpus.folder) == undisturbed


def test_ray_leaves_the_same_bytes(
    corpus: Corpus, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    # In a process of its own: Ray's own warnings are not ours. It keeps a token in HOME.
    environment = {"HOME": str(tmp_path), "RAY_ADDRESS": "", "PYTHONWARNINGS": "ignore"}
    # Its own processes have a minute or less to start, which is little on a busy machine.
    for patience in (
        "RAY_gcs_server_port_wait_time_s",
        "RAY_gcs_server_request_timeout_seconds",
        "RAY_worker_register_timeout_seconds",
    ):
        environment[patience] = f"{PATIENCE:.0f}"
    process = program("ray", corpus.folder, "", environment=environment)
    assert process.wait(2 * PATIENCE) == 0
    process.stdout.close()
    assert tree(corpus.folder) == undisturbed


def test_without_ray_the_extra_is_named(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as error:
        run_stage(corpus, Measure(), engine="ray")
    assert error.value.hint == "pip install 'petzval[cluster]'"


def test_an_unknown_engine_is_refused(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="unknown engine 'spark'"):
        run_stage(corpus, Measure(), engine="spark")


@dataclass(frozen=True)
class Total:
    """A stage that sees all parts."""

    settings: NoSettings = NoSettings()
    name: str = "total"
    needs: tuple[str, ...] = ("count",)
    version: int = 1

    def run_corpus(self, parts: Sequence[pa.Table]) -> Sequence[pa.Table]:
        """The sum over the corpus, in every row."""
        total = sum(sum(part["count.bytes"].to_pylist()) for part in parts)
        return [pa.table({"bytes": [total] * part.num_rows}) for part in parts]


def test_a_stage_over_the_corpus_runs_on_all_parts_or_none(corpus: Corpus) -> None:
    run_stage(corpus, Count())
    assert run_corpus_stage(corpus, Total()).num_run == 6
    assert run_corpus_stage(corpus, Total()).num_run == 0
    before = tree(corpus.folder)
    corpus.marker_path("total", 3).unlink()
    assert run_corpus_stage(corpus, Total()).num_run == 6
    assert tree(corpus.folder) == before
