from __future__ import annotations

import pytest

from petzval.data.prompts import SKILLS, evaluation_prompts
from petzval.errors import DataError
from petzval.evals.questions import question, questions
from petzval.scoring.colours import BACKGROUND_COLOURS, OBJECT_COLOURS
from petzval.scoring.scorer import Expectation


def test_there_are_enough_english_questions_of_every_skill() -> None:
    asked = questions(("en",), {})
    assert len(asked) >= 300
    assert {one.skill for one in asked} == set(SKILLS)
    assert len({one.prompt_id for one in asked}) == len(asked)


def test_a_skill_asks_for_what_its_name_says() -> None:
    wanted = {
        "single": {"concept"}, "background": {"concept", "background"},
        "colour": {"concept", "colour"}, "two": {"concept", "relation"},
        "count": {"concept", "count"}, "style": {"concept", "style"},
        "position": {"concept", "position"},
    }  # fmt: skip
    for one in questions(("en",), {}):
        assert set(one.expectation.asked()) == wanted[one.skill]
        # What the prompts may ask for, the scorer has a word for.
        assert Expectation.from_json(one.expectation.to_json()) == one.expectation
        assert one.expectation.background in {None, *BACKGROUND_COLOURS}
        assert all(thing.colour in {None, *OBJECT_COLOURS} for thing in one.expectation.objects)


def test_the_same_number_asks_the_same_in_every_language() -> None:
    english = {one.number: one for one in questions(("en",), {"en": 21})}
    german = {one.number: one for one in questions(("de",), {"de": 21})}
    assert english.keys() == german.keys()
    for number, one in english.items():
        assert german[number].expectation == one.expectation
        assert german[number].prompt != one.prompt


def test_limits_are_by_language_and_a_prefix_has_every_skill() -> None:
    asked = questions(("en", "fr"), {"en": 14, "fr": 7})
    assert [one.language for one in asked] == ["en"] * 14 + ["fr"] * 7
    assert {one.skill for one in asked if one.language == "fr"} == set(SKILLS)


@pytest.mark.parametrize(("languages", "limits"), [((), {}), (("xx",), {}), (("en",), {"en": 0})])
def test_a_wrong_wish_is_answered(
    languages: tuple[str, ...], limits: dict[str, int | None]
) -> None:
    with pytest.raises(DataError):
        questions(languages, limits)


def test_a_cell_becomes_a_word() -> None:
    asked = [one for one in evaluation_prompts(("en",)) if one.expectation.cell == (2, 0)]
    positions = {question(one).expectation.objects[0].position for one in asked}
    assert positions == {"bottom left"}
