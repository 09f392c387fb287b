"""The cases of the corpus do what their rows say, on a handful of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import loopback
from benchmarks.case import Case, Prepared
from benchmarks.cases import CASES
from benchmarks.cases.corpus_captions import prepare_endpoint, prepare_metadata
from benchmarks.cases.corpus_shards import prepare_reading, prepare_writing
from benchmarks.measure import Measurement, measure


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def measured(prepared: Prepared) -> Measurement:
    """One round, as the runner would measure it."""
    case = Case(
        name="small",
        title="a small one",
        why="it is quick",
        prepare=lambda: prepared,
        rounds=1,
        threads=torch.get_num_threads(),
    )
    return measure(case)


def test_captions_of_the_source() -> None:
    found = measured(prepare_metadata(3))
    assert found.facts["captions"] == 3 and found.met
    assert len(found.timings) == 2


def test_questions_to_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with loopback.serving() as url:
        found = measured(prepare_endpoint(url, 3))
    assert found.facts["requests"] == 3
    assert list(found.timings)[-1].startswith("+ decode")


def test_shards_are_written() -> None:
    found = measured(prepare_writing(3, 96, 128))
    assert found.facts["pictures"] == 3
    assert float(found.facts["MB of shards"]) > 0


# The library leaves closing its files to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_are_read_in_three_ways() -> None:
    found = measured(prepare_reading(3, 96, 128))
    first_words = [way.split()[0].strip(",") for way in found.timings]
    assert first_words == ["tarfile", "webdataset", "ShardReader"]


def test_cases_have_names_of_their_own_and_limits_in_time() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    new = {"caption-metadata", "caption-requests", "write-shards", "read-shards"}
    assert new <= set(names)
    assert all(case.max_seconds for case in CASES if case.name in new)
