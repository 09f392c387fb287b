from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petzval.errors import DataError
from petzval.scoring.positions import POSITIONS, position_of
from petzval.scoring.scorer import CHECKS, Expectation, ExpectedObject, Verdict


def test_positions_name_the_nine_cells_in_reading_order() -> None:
    centres = [(y, x) for y in (10.0, 45.0, 80.0) for x in (20.0, 90.0, 160.0)]
    assert tuple(position_of(c, 90, 180) for c in centres) == POSITIONS


@given(st.floats(-50, 250), st.floats(-50, 250))
def test_every_point_is_somewhere(y: float, x: float) -> None:
    assert position_of((y, x), 100, 200) in POSITIONS


def test_an_expectation_survives_json() -> None:
    expectation = Expectation(
        objects=(
            ExpectedObject(concept="cat", colour="red", position="top left"),
            ExpectedObject(concept="dog", count=2),
        ),
        relation="left of",
        background="blue",
        style="noto",
    )
    assert Expectation.from_json(expectation.to_json()) == expectation
    assert expectation.asked() == CHECKS


def test_only_what_is_asked_is_asked() -> None:
    expectation = Expectation(objects=(ExpectedObject(concept="cat"),))
    assert expectation.asked() == ("concept",)
    assert expectation.to_json() == {"objects": [{"concept": "cat"}]}


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"objects": [{"colour": "red"}]},
        {"objects": [{"concept": "cat", "size": "big"}]},
        {"objects": [{"concept": "cat", "position": "middle"}]},
        {"objects": [{"concept": "cat"}], "relation": "left of"},
        {"objects": [], "weather": "rain"},
    ],
)
def test_a_broken_expectation_is_refused(mapping: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Expectation.from_json(mapping)


def test_a_verdict_passes_when_every_check_does() -> None:
    assert Verdict(checks={"concept": True, "colour": True}).passed
    assert not Verdict(checks={"concept": True, "colour": False}).passed
