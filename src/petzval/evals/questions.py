"""What is asked of a model: held-out prompts, each with what its picture must show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from petzval.data import prompts
from petzval.errors import DataError
from petzval.scoring.positions import POSITIONS
from petzval.scoring.scorer import Expectation, ExpectedObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt.

    Attributes:
        prompt_id: names the prompt and its language.
        number: the same in every language.
        skill: what the prompt exercises.
        trained: whether every concept in it was trained on.
    """

    prompt_id: str
    number: str
    skill: str
    language: str
    prompt: str
    trained: bool
    expectation: Expectation


def questions(languages: Sequence[str], limits: Mapping[str, int | None]) -> list[Question]:
    """The first prompts of each language; every prefix is a fair mixture of skills.

    Args:
        limits: how many of each language; None or absent takes all.

    Raises:
        DataError: a language is unknown, a limit is below 1, or nothing is asked.
    """
    chosen: list[Question] = []
    for language in dict.fromkeys(languages):
        limit = limits.get(language)
        if limit is not None and limit < 1:
            raise DataError(f"a limit must be at least 1, got {limit} for {language}")
        found = prompts.evaluation_prompts((language,))
        chosen.extend(question(one) for one in found[:limit])
    if not chosen:
        raise DataError("no language to evaluate", "name at least one, such as en")
    return chosen


def question(prompt: prompts.EvaluationPrompt) -> Question:
    """A prompt with its expectation in the scorer's words."""
    return Question(
        prompt_id=prompt.prompt_id,
        number=prompt.prompt_id.partition("-")[2],
        skill=prompt.skill,
        language=prompt.language,
        prompt=prompt.prompt,
        trained=prompt.trained,
        expectation=expectation(prompt.expectation),
    )


def expectation(wanted: prompts.Expectation) -> Expectation:
    """The scorer's form: colour, number and place belong to the first thing."""
    cell = wanted.cell
    position = None if cell is None else POSITIONS[3 * cell[0] + cell[1]]
    objects = tuple(
        ExpectedObject(
            concept=concept,
            count=wanted.count if index == 0 else None,
            colour=wanted.colour if index == 0 else None,
            position=position if index == 0 else None,
        )
        for index, concept in enumerate(wanted.concepts)
    )
    return Expectation(
        objects=objects,
        relation=wanted.relation,
        background=wanted.background,
        style=wanted.style,
    )
