"""Back to the placement of the beginning: when it pays, and not after memory ran out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from petzval.inference.pipeline import Pipeline
from petzval.inference.planning import MemoryWarning, Planning
from tests.inference.test_fitting import FOX, SMALL, peak, planned, planner_of

LARGE: dict[str, Any] = {**SMALL, "size": "256x256"}


@pytest.fixture(scope="module")
def limit(golden_checkpoint: Path) -> int:
    """Room for `LARGE` where nothing stays, and for `SMALL` where all does."""
    loose = planned(golden_checkpoint)
    placements = planner_of(loose, FOX, **LARGE).placements
    limit = min(each.peak_bytes for each in placements) + 10_000
    assert peak(loose, FOX, **SMALL) < limit
    return limit


def requests_until_back(pipeline: Pipeline, most: int = 40) -> int:
    """How many small pictures are planned for, as they are before each is drawn, until it moves."""
    plan = pipeline.plan(FOX, **SMALL)
    away = pipeline.placement
    for number in range(1, most):
        pipeline._make_room(plan, 1)
        if pipeline.placement is not away:
            return number
    return most


def predicted(pipeline: Pipeline) -> tuple[float, float]:
    """Seconds that a small picture would save at home, and those of the way there and back."""
    home, _ = pipeline._fitting._way_back._home or (None, None)
    assert home is not None and pipeline.placement is not None
    planner = planner_of(pipeline, FOX, **SMALL)
    there, here = planner.again(home), planner.again(pipeline.placement)
    return here.other_seconds - there.other_seconds, there.load_seconds + here.load_seconds


def test_small_requests_bring_the_first_placement_back_when_that_pays(
    golden_checkpoint: Path, limit: int
) -> None:
    pipeline = planned(golden_checkpoint, limit)
    first = pipeline.placement
    [expected] = pipeline.generate(FOX, **SMALL)
    with pytest.warns(MemoryWarning, match="going on with"):
        pipeline._make_room(pipeline.plan(FOX, **LARGE), 1)
    saved, cost = predicted(pipeline)
    assert saved > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)
        number = requests_until_back(pipeline)
    assert (number - 1) * saved <= cost * 1.001
    assert number * saved >= cost * 0.999
    assert pipeline.placement is first
    [again] = pipeline.generate(FOX, **SMALL)
    assert again.encode() == expected.encode()
    assert requests_until_back(pipeline, 5) == 5  # at home, and stays


def test_a_large_request_between_starts_the_count_anew(
    golden_checkpoint: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or every other request would move gigabytes."""
    pipeline = planned(golden_checkpoint, limit)
    small, large = pipeline.plan(FOX, **SMALL), pipeline.plan(FOX, **LARGE)
    with pytest.warns(MemoryWarning):
        pipeline._make_room(large, 1)
    away = pipeline._residency
    saved, _ = predicted(pipeline)
    monkeypatch.setattr(type(away.placement), "load_seconds", property(lambda _: 2 * saved))
    for _ in range(6):  # one saves a quarter of the way there and back
        pipeline._make_room(small, 1)
        pipeline._make_room(large, 1)
    for _ in range(3):
        pipeline._make_room(small, 1)
    assert pipeline._residency is away
    for _ in range(2):
        pipeline._make_room(small, 1)
    assert pipeline._residency is not away


def test_after_memory_ran_out_the_smaller_plan_stays(
    golden_checkpoint: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = planned(golden_checkpoint, limit)
    plan = pipeline.plan(FOX, **SMALL)
    assert pipeline.planning is not None and pipeline.placement is not None
    smaller = min(planner_of(pipeline, FOX, **SMALL).placements, key=lambda each: each.peak_bytes)
    monkeypatch.setattr(Planning, "smaller", lambda *_: smaller)
    with pytest.warns(MemoryWarning, match="memory ran out"):
        pipeline._shrink(plan, 1)
    assert pipeline.placement is smaller
    assert requests_until_back(pipeline, 10) == 10
