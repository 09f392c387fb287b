"""Articles and plurals."""

from __future__ import annotations

import pytest

from petzval.data.english import (
    PLACES,
    STYLES,
    counted,
    has_colour_word,
    listed,
    plural,
    with_article,
)
from petzval.data.prompt_concepts import prompt_concepts
from petzval.data.scene import STYLE_WEIGHTS


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("cat", "a cat"),
        ("apple", "an apple"),
        ("unicorn", "a unicorn"),
        ("UFO", "a UFO"),
        ("umbrella", "an umbrella"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("grapes", "grapes"),
        ("glass of wine", "a glass of wine"),
        ("clinking glasses", "clinking glasses"),
        ("bus", "a bus"),
        ("flag of Japan", "the flag of Japan"),
        ("Santa Claus", "Santa Claus"),
        ("paw prints", "paw prints"),
    ],
)
def test_articles(phrase: str, expected: str) -> None:
    assert with_article(phrase) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("computer mouse", "computer mice"),
        ("tomato", "tomatoes"),
        ("glass of wine", "glasses of wine"),
        ("flag of Japan", "flags of Japan"),
        ("clock showing one-thirty", "clocks showing one-thirty"),
        ("fish", "fish"),
        ("grapes", "bunches of grapes"),
        ("jeans", "jeans"),
    ],
)
def test_plurals(name: str, expected: str) -> None:
    assert plural(name) == expected


def test_counts_and_lists() -> None:
    assert counted(1, "cat") == "one cat" and counted(3, "wolf") == "three wolves"
    assert listed([]) == "" and listed(["a"]) == "a" and listed(("a", "b", "c")) == "a, b and c"


def test_colour_words_are_found_as_whole_words() -> None:
    assert has_colour_word("red apple") and not has_colour_word("credit card")


def test_plain_names_have_no_doubled_endings() -> None:
    for concept in prompt_concepts():
        assert not plural(concept.names["en"]).endswith(("sses s", "ss s", "sss", "eses"))


def test_every_style_and_cell_has_words() -> None:
    assert STYLE_WEIGHTS.keys() <= STYLES.keys()
    assert len(PLACES) == 9
    assert len({words[0] for words in STYLES.values()}) == len(STYLES)
