"""What no plan has room for is refused when it is asked for, by values that other threads share."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from petzval.errors import PlacementError
from petzval.inference.dry_networks import Work
from petzval.inference.pipeline import Pipeline
from petzval.inference.planning import Planning
from petzval.inference.room import Bounds, Room
from petzval.inference.variants import locate
from tests.inference.test_fitting import FOX, SMALL, planned, planner_of

LARGE: dict[str, Any] = {**SMALL, "size": "128x128"}


@pytest.fixture(scope="module")
def tight(golden_checkpoint: Path) -> Pipeline:
    """`LARGE` has no room, `SMALL` has."""
    loose = planned(golden_checkpoint)
    least = min(each.peak_bytes for each in planner_of(loose, FOX, **LARGE).placements)
    return planned(golden_checkpoint, least - 1)


@pytest.fixture
def reckoned(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    asked: list[Work] = []
    reckon = Planning.planner

    def count(self: Planning, work: Work, baseline: int | None = None) -> object:
        asked.append(work)
        return reckon(self, work, baseline)

    monkeypatch.setattr(Planning, "planner", count)
    return asked


def test_what_does_not_fit_is_named_with_what_does(tight: Pipeline, reckoned: list[Work]) -> None:
    room = Room.of(tight)
    assert room is not None
    small, large = tight.plan(FOX, **SMALL), tight.plan(FOX, **LARGE)
    room.check(small)
    assert reckoned == []  # it was planned for
    with ThreadPoolExecutor(4) as pool:
        refused = [each.exception() for each in [pool.submit(room.check, large) for _ in range(4)]]
    assert len(reckoned) == 1
    for error in refused:
        assert isinstance(error, PlacementError)
        assert error.message.startswith("no plan for 128x128 fits in ")
        assert error.hint == "ask for a smaller size: 64x48 fits"
    with pytest.raises(PlacementError, match="128x256 is too large: no plan for 128x128 fits in"):
        room.check(tight.plan(FOX, **{**LARGE, "size": "128x256"}))
    assert len(reckoned) == 1
    between = tight.plan(FOX, **{**SMALL, "size": "96x64"})
    room.check(between)
    room.check(between)
    assert len(reckoned) == 2
    assert room._terms.works[-1].grid == (4, 6)
    assert tight.terms is not None
    assert room._terms.works != tight.terms.works  # nothing is shared with the thread that draws


def test_a_crowd_is_let_through_and_does_not_wait(tight: Pipeline, reckoned: list[Work]) -> None:
    """Threads of a server that wait for reckonings answer nobody."""
    room = Room.of(tight)
    assert room is not None
    large = tight.plan(FOX, **LARGE)
    with ThreadPoolExecutor(4) as pool, room._lock:
        waiting = [pool.submit(room.check, large) for _ in range(4)]
        while room._waiting._value:
            time.sleep(0.001)
        room.check(large)
        assert reckoned == []
        room._lock.release()
        try:
            assert all(isinstance(each.exception(), PlacementError) for each in waiting)
        finally:
            room._lock.acquire()
    with pytest.raises(PlacementError, match="no plan for 128x128"):
        room.check(large)


def test_the_bounds_of_another_process_give_the_same_answer(tight: Pipeline) -> None:
    bounds = Bounds.of(tight)
    assert bounds is not None and tight.planning is not None
    travelled: Bounds = pickle.loads(pickle.dumps(bounds))
    room = Room.elsewhere(locate(tight.planning.checkpoint.folder), travelled)
    assert room is not None
    room.check(tight.plan(FOX, **SMALL))
    with pytest.raises(PlacementError, match="no plan for 128x128 fits in"):
        room.check(tight.plan(FOX, **LARGE))


def test_who_has_no_limits_refuses_nothing(pipeline: Pipeline) -> None:
    assert Bounds.of(pipeline) is None
    assert Room.of(pipeline) is None
