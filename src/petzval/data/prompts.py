"""Held-out evaluation prompts, each with what its picture must show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

from petzval.data import english
from petzval.data.caption_languages import background_phrase, painted_phrase
from petzval.data.core_names import SHAPES
from petzval.data.languages import LANGUAGES, MEASURED_LANGUAGES
from petzval.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS, contrasting
from petzval.data.phrases import PHRASES
from petzval.data.prompt_concepts import (
    PromptConcept,
    choice,
    ordered_concepts,
    pick_concept,
    shape_concept,
)
from petzval.errors import DataError

SKILLS: tuple[str, ...] = (
    "single", "background", "colour", "two", "count", "style", "position",
)  # fmt: skip
"""Skills in the order in which prompts alternate."""

NUM_PER_SKILL: Mapping[str, int] = {
    "single": 84, "background": 42, "colour": 56, "two": 44, "count": 40, "style": 36,
    "position": 45,
}  # fmt: skip
_STYLES = ("fluent-3d", "fluent-flat", "noto")
_RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a picture must show to be judged right; a field that is empty is not asked for.

    Attributes:
        concepts: ids of what must be seen, in order; `names` are their English names.
        colour: colour of the painted thing.
        count: how many of it.
        cell: (row, column) of its centre on a 3 x 3 grid.
        relation: how the first concept lies to the second.
        background: name of the plain background colour.
        style: drawing style.
    """

    concepts: tuple[str, ...]
    names: tuple[str, ...]
    colour: str | None = None
    count: int | None = None
    cell: tuple[int, int] | None = None
    relation: str | None = None
    background: str | None = None
    style: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPrompt:
    """One prompt.

    Attributes:
        prompt_id: "en-single-000"; the same number asks for the same in every language.
        skill: one of `SKILLS`.
        prompt: the text.
        language: its language.
        expectation: what the picture must show.
        trained: whether all its concepts were trained on.
    """

    prompt_id: str
    skill: str
    prompt: str
    language: str
    expectation: Expectation
    trained: bool


def evaluation_prompts(
    languages: Sequence[str] = ("en", *MEASURED_LANGUAGES),
) -> list[EvaluationPrompt]:
    """All evaluation prompts, in an order that never changes.

    Languages come one after the other. Within a language the skills of `SKILLS` take turns, each
    giving its next prompt, until all have given all: so every prefix is a fair sample. About every
    fourth prompt of a skill asks for a concept that was held out of training. No training caption
    has the words of a prompt: see `is_evaluation_text`.

    Raises:
        DataError: a language is unknown.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise DataError(f"unknown language {language!r}", f"languages: {', '.join(LANGUAGES)}")
    return [prompt for language in languages for prompt in _prompts(language)]


def is_evaluation_text(text: str) -> bool:
    """Whether a text has the words of an evaluation prompt, so that it may not be trained on."""
    return _normal(text) in _evaluation_texts()


@cache
def _evaluation_texts() -> frozenset[str]:
    return frozenset(_normal(prompt.prompt) for prompt in evaluation_prompts(LANGUAGES))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


@cache
def _prompts(language: str) -> tuple[EvaluationPrompt, ...]:
    columns = [
        [_BUILDERS[skill](number, language) for number in range(NUM_PER_SKILL[skill])]
        for skill in SKILLS
    ]
    return tuple(prompt for row in zip_longest(*columns) for prompt in row if prompt is not None)


def _make(
    skill: str, number: int, language: str, prompt: str, concepts: Sequence[PromptConcept],
    expectation: Expectation,
) -> EvaluationPrompt:  # fmt: skip
    return EvaluationPrompt(
        prompt_id=f"{language}-{skill}-{number:03d}",
        skill=skill,
        prompt=prompt,
        language=language,
        expectation=expectation,
        trained=not any(concept.held_out for concept in concepts),
    )


def _expect(concepts: Sequence[PromptConcept]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(c.id for c in concepts), tuple(c.names["en"] for c in concepts)


def _on(language: str, subject: str, background: str) -> str:
    """A subject in front of a background."""
    if language == "en":
        return f"{subject} on {english.with_article(background)} background"
    phrase = background_phrase(language, background)
    return PHRASES[language].plain[0].format(n=subject, b=phrase)


def _thing(language: str, concept: PromptConcept) -> str:
    name = concept.names[language]
    return english.with_article(name) if language == "en" else name


def _single(number: int, language: str) -> EvaluationPrompt:
    concept = pick_concept("single", number)
    background = choice("single background", number, list(BACKGROUND_COLOURS))
    ids, names = _expect([concept])
    return _make(
        "single", number, language, _on(language, _thing(language, concept), background), [concept],
        Expectation(concepts=ids, names=names),
    )  # fmt: skip


def _background(number: int, language: str) -> EvaluationPrompt:
    concept = pick_concept("background", number)
    background = choice("background", number, list(BACKGROUND_COLOURS))
    ids, names = _expect([concept])
    if language == "en":
        text = f"{_thing(language, concept)}, {background} background"
    else:
        phrase = background_phrase(language, background)
        text = PHRASES[language].plain[-1].format(n=concept.names[language], b=phrase)
    return _make(
        "background", number, language, text, [concept],
        Expectation(concepts=ids, names=names, background=background),
    )  # fmt: skip


def _colour(number: int, language: str) -> EvaluationPrompt:
    """Two in three are plain shapes, the third is a silhouette."""
    colour = choice("colour", number, list(OBJECT_COLOURS))
    background = choice("colour background", number, contrasting(colour))
    if number % 3 == 2:
        concept = pick_concept("colour", number // 3, silhouette=True)
        name = concept.names[language]
        if language == "en":
            subject = english.with_article(f"{colour} {name} silhouette")
        else:
            outline = PHRASES[language].silhouette.format(n=name)
            subject = painted_phrase(language, outline, colour)
    else:
        concept = shape_concept(choice("shape", number, list(SHAPES)))
        name = concept.names[language]
        if language == "en":
            subject = english.with_article(f"{colour} {name}")
        else:
            subject = painted_phrase(language, name, colour)
    ids, names = _expect([concept])
    return _make(
        "colour", number, language, _on(language, subject, background), [concept],
        Expectation(concepts=ids, names=names, colour=colour),
    )  # fmt: skip


def _two(number: int, language: str) -> EvaluationPrompt:
    first = pick_concept("two first", number)
    # The second one is always a trained concept, and never the first.
    pool = [c for c in ordered_concepts("two second", False, False) if c.id != first.id]
    second = pool[number % len(pool)]
    relation = choice("relation", number, _RELATIONS)
    background = choice("two background", number, list(BACKGROUND_COLOURS))
    if language == "en":
        said = {"left of": "to the left of", "right of": "to the right of"}.get(relation, relation)
        subject = f"{_thing('en', first)} {said} {_thing('en', second)}"
        text = _on("en", subject, background)
    else:
        a, z = first.names[language], second.names[language]
        phrases = PHRASES[language]
        if relation in {"right of", "below"}:
            a, z = z, a
        patterns = phrases.beside if relation in {"left of", "right of"} else phrases.stacked
        text = patterns[0].format(a=a, z=z, b=background_phrase(language, background))
    ids, names = _expect([first, second])
    return _make(
        "two", number, language, text, [first, second],
        Expectation(concepts=ids, names=names, relation=relation),
    )  # fmt: skip


def _count(number: int, language: str) -> EvaluationPrompt:
    concept = pick_concept("count", number)
    count = 1 + number % 5
    background = choice("count background", number, list(BACKGROUND_COLOURS))
    name = concept.names[language]
    subject = (
        english.counted(count, name)
        if language == "en"
        else PHRASES[language].counts[count - 1].format(n=name)
    )
    ids, names = _expect([concept])
    return _make(
        "count", number, language, _on(language, subject, background), [concept],
        Expectation(concepts=ids, names=names, count=count),
    )  # fmt: skip


def _style(number: int, language: str) -> EvaluationPrompt:
    concept = pick_concept("style", number)
    style = choice("style", number, _STYLES)
    background = choice("style background", number, list(BACKGROUND_COLOURS))
    if language == "en":
        drawn = english.with_article(english.STYLES[style][0])
        text = _on("en", f"{drawn} of {_thing('en', concept)}", background)
    else:
        phrases = PHRASES[language]
        text = phrases.styled[0].format(
            n=concept.names[language], b=background_phrase(language, background),
            t=phrases.styles[_STYLES.index(style)],
        )  # fmt: skip
    ids, names = _expect([concept])
    return _make(
        "style", number, language, text, [concept],
        Expectation(concepts=ids, names=names, style=style),
    )  # fmt: skip


def _position(number: int, language: str) -> EvaluationPrompt:
    concept = pick_concept("position", number)
    place = int(choice("position", number, [str(i) for i in range(9)]))
    cell = (place // 3, place % 3)
    background = choice("position background", number, list(BACKGROUND_COLOURS))
    if language == "en":
        text = _on("en", f"{_thing('en', concept)} {english.PLACES[cell][0]}", background)
    else:
        phrases = PHRASES[language]
        text = phrases.placed.format(
            n=concept.names[language], p=phrases.places[place],
            b=background_phrase(language, background),
        )  # fmt: skip
    ids, names = _expect([concept])
    return _make(
        "position", number, language, text, [concept],
        Expectation(concepts=ids, names=names, cell=cell),
    )  # fmt: skip


_BUILDERS: Mapping[str, Callable[[int, str], EvaluationPrompt]] = {
    "single": _single, "background": _background, "colour": _colour, "two": _two, "count": _count,
    "style": _style, "position": _position,
}  # fmt: skip
