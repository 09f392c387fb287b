from __future__ import annotations

import pytest

from petzval.evals.summary import (
    by_check,
    by_skill,
    everything,
    one_check,
    select,
    shared_numbers,
)
from petzval.evals.verdicts import Row


def row(
    number: str,
    skill: str,
    checks: dict[str, bool],
    *,
    language: str = "en",
    trained: bool = True,
) -> Row:
    return Row(
        prompt_id=f"{language}-{number}", number=number, skill=skill, language=language,
        trained=trained, prompt="p", seed=0, picture="k", scorer="s", checks=checks, reasons={},
        chance=dict.fromkeys(checks, 0.5),
    )  # fmt: skip


ROWS = [
    row("a", "single", {"concept": True}),
    row("b", "single", {"concept": False}, trained=False),
    row("c", "colour", {"concept": True, "colour": False}),
    row("d", "colour", {"concept": True, "colour": True}),
    row("a", "single", {"concept": True}, language="de"),
]


def test_skills_keep_their_order_and_end_in_all() -> None:
    lines = by_skill(select(ROWS, language="en"))
    assert [line.name for line in lines] == ["single", "colour", "all"]
    assert [line.share.mean for line in lines] == [0.5, 0.5, 0.5]
    assert [line.share.num_values for line in lines] == [2, 2, 4]


def test_chance_multiplies_over_what_is_asked() -> None:
    assert everything("x", ROWS[2:4]).chance == 0.25
    assert everything("x", ROWS[:4]).chance == pytest.approx((0.5 + 0.5 + 0.25 + 0.25) / 4)


def test_a_check_counts_only_where_it_is_asked() -> None:
    lines = {line.name: line for line in by_check(ROWS)}
    assert list(lines) == ["concept", "colour"]
    assert lines["concept"].share.mean == pytest.approx(4 / 5)
    assert lines["colour"].share.num_values == 2
    assert one_check("style", ROWS) is None


def test_selection_narrows() -> None:
    assert select(ROWS, trained=False) == [ROWS[1]]
    assert select(ROWS, skill="single", language="de") == [ROWS[4]]
    assert select(ROWS, numbers=frozenset({"a"})) == [ROWS[0], ROWS[4]]


def test_shared_numbers_are_those_of_every_language() -> None:
    assert shared_numbers(ROWS) == {"a"}
    assert shared_numbers([]) == frozenset()
