from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import measure as measuring
from benchmarks.case import Case, Prepared
from benchmarks.cases import CASES
from benchmarks.measure import Timing, measure
from benchmarks.report import latest, summary_table, write
from benchmarks.runner import main


class _Clock:
    """A clock that only `sleep` moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(measuring, "time", made)
    return made


def _case(clock: _Clock, slow_result: float = 1.0, **limits: float) -> Case:
    def slow() -> Tensor:
        clock.sleep(0.02)
        return torch.tensor([slow_result])

    def fast() -> Tensor:
        clock.sleep(0.002)
        return torch.tensor([1.0])

    return Case(
        name="sleep",
        title="sleeping",
        why="it is known how long it takes",
        prepare=lambda: Prepared(ways={"slow": slow, "fast": fast}, dtype="none"),
        rounds=3,
        min_ratio=limits.get("min_ratio"),
        max_seconds=limits.get("max_seconds"),
    )


def test_a_ratio_is_that_of_slow_to_fast_within_a_round(clock: _Clock) -> None:
    measured = measure(_case(clock, min_ratio=9.9))
    assert measured.ratios["slow"] == 1.0
    assert measured.ratios["fast"] == pytest.approx(10.0)
    assert measured.timings["slow"].median == pytest.approx(0.02)
    assert measured.difference == 0.0
    assert measured.met


@pytest.mark.parametrize("limits", [{"min_ratio": 10.1}, {"max_seconds": 0.0019}])
def test_a_missed_limit_is_said(clock: _Clock, limits: dict[str, float]) -> None:
    assert not measure(_case(clock, **limits)).met


def test_ways_that_disagree_do_not_meet_the_case(clock: _Clock) -> None:
    measured = measure(_case(clock, slow_result=1.5))
    assert measured.difference == 0.5
    assert not measured.met


def test_a_timing_is_the_median_between_its_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 3.0]) == Timing(median=3.0, low=1.0, high=5.0)
    many = Timing.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert many.low < many.median == 3.0 < many.high


def _row(case: str, median: float) -> dict[str, Any]:
    timing = {"median": median, "low": median, "high": median}
    return {
        "case": case,
        "title": f"the title of {case}",
        "why": "because",
        "timings": {"slow": {k: 3 * v for k, v in timing.items()}, "fast": timing},
        "ratios": {"slow": 1.0, "fast": 3.0},
        "difference": 1e-6,
        "peak_mib": 100.0,
        "met": True,
        "dtype": "float32",
        "facts": {"steps": 4},
        "limits": {"min_ratio": 2.0, "max_seconds": None},
        "rounds": 3,
        "threads": 2,
        "device": "cpu",
        "date": "2026-01-01",
        "commit": "abc",
        "changed": False,
        "machine": {"processor": "a processor", "cores": 2},
        "load": 0.1,
        "versions": {"torch": "2.13.0"},
    }


def test_the_report_shows_the_latest_row_of_each_case(tmp_path: Path) -> None:
    rows = [_row("first", 9.0), _row("second", 0.25), _row("first", 0.5)]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "cpu.jsonl").write_text(lines, encoding="utf-8")
    assert [row["case"] for row in latest(tmp_path)] == ["first", "second"]
    table = summary_table(tmp_path)
    assert "| the title of first | 500 ms | 3.00 x | at least 2 x |" in table
    assert "9.00" not in table
    report = tmp_path / "report.md"
    write(tmp_path, report)
    text = report.read_text(encoding="utf-8")
    assert "| fast | 0.5000 (0.5000–0.5000) | 3.00 |" in text
    assert "make bench" in text


def test_an_unknown_case_is_answered_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["guidance-two"])
    assert stopped.value.code == 2
    assert "guidance-one" in capsys.readouterr().err


def test_the_prefix_cache_case_holds_its_own_claim_of_exactness() -> None:
    case = next(case for case in CASES if case.name == "prefix-cache")
    # On as many threads as the other tests, which come after it in this process.
    measured = measure(dataclasses.replace(case, rounds=1, min_ratio=None, threads=0))
    assert measured.difference is not None
    assert 0 < measured.difference <= case.tolerance
