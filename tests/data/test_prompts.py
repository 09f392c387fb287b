"""Evaluation prompts: many, fair in every prefix, and never moving."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from petzval.data import prompt_concepts as packaged
from petzval.data.concepts import is_held_out
from petzval.data.core_names import REWRITES
from petzval.data.languages import LANGUAGES, MEASURED_LANGUAGES
from petzval.data.palette import BACKGROUND_COLOURS, clash
from petzval.data.prompt_concepts import prompt_concepts
from petzval.data.prompts import NUM_PER_SKILL, SKILLS, evaluation_prompts
from petzval.errors import DataError


def test_there_are_enough_in_english_and_as_many_in_each_language() -> None:
    counts = Counter(prompt.language for prompt in evaluation_prompts())
    assert set(counts) == {"en", *MEASURED_LANGUAGES}
    assert set(counts.values()) == {sum(NUM_PER_SKILL.values())}
    assert counts["en"] >= 300


def test_no_two_prompts_are_the_same() -> None:
    found = evaluation_prompts()
    assert len({prompt.prompt_id for prompt in found}) == len(found)
    assert len({prompt.prompt for prompt in found}) == len(found)


def test_skills_take_turns() -> None:
    found = evaluation_prompts(["en"])
    assert [prompt.skill for prompt in found[:14]] == [*SKILLS, *SKILLS]
    for length in (12, 50, 100):
        counts = Counter(prompt.skill for prompt in found[:length])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_list_never_moves() -> None:
    """A published score names these prompts: whoever changes them must say so."""
    text = "\n".join(f"{p.prompt_id} {p.prompt}" for p in evaluation_prompts())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "402c474f77ff639c"


def test_a_number_asks_for_the_same_in_every_language() -> None:
    by_number: dict[str, set[object]] = {}
    for prompt in evaluation_prompts(LANGUAGES):
        number = prompt.prompt_id.partition("-")[2]
        by_number.setdefault(number, set()).add((prompt.expectation, prompt.trained, prompt.skill))
    assert all(len(expectations) == 1 for expectations in by_number.values())


def test_every_skill_asks_for_what_it_is_about() -> None:
    asked = {"background": "background", "colour": "colour", "two": "relation", "count": "count",
             "style": "style", "position": "cell"}  # fmt: skip
    for prompt in evaluation_prompts(["en"]):
        expectation = prompt.expectation
        for skill, name in asked.items():
            assert (getattr(expectation, name) is not None) == (skill == prompt.skill)
        assert len(expectation.concepts) == (2 if prompt.skill == "two" else 1)
        assert len(set(expectation.concepts)) == len(expectation.concepts)


def test_painted_things_can_be_seen() -> None:
    for prompt in evaluation_prompts(["en"]):
        colour = prompt.expectation.colour
        if colour is None:
            continue
        behind = [b for b in BACKGROUND_COLOURS if prompt.prompt.endswith(f" {b} background")]
        assert not clash(colour, max(behind, key=len))


def test_trained_and_held_out_are_told_apart() -> None:
    held_out = {concept.id: concept.held_out for concept in prompt_concepts()}
    for prompt in evaluation_prompts():
        sides = [held_out.get(key, is_held_out(key)) for key in prompt.expectation.concepts]
        assert prompt.trained == (not any(sides))
    for skill in SKILLS:
        trained = [p.trained for p in evaluation_prompts(["en"]) if p.skill == skill]
        assert trained.count(True) > trained.count(False) > 0


def test_the_packaged_concepts_agree_with_the_split() -> None:
    cldr = {natural: name for name, natural in REWRITES.items()}
    for concept in prompt_concepts():
        name = cldr.get(concept.names["en"], concept.names["en"])
        assert concept.held_out == is_held_out(name)
        assert set(concept.names) == set(LANGUAGES)


def test_unknown_languages_are_refused() -> None:
    with pytest.raises(DataError, match="'tlh'"):
        evaluation_prompts(["en", "tlh"])


@pytest.mark.parametrize("text", ["{", "[3]", '[{"id": "x"}]'])
def test_a_damaged_package_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "prompt_concepts.json"
    path.write_text(text)
    monkeypatch.setattr(packaged, "_FILE", path)
    with pytest.raises(DataError, match=r"prompt_concepts\.json is damaged"):
        packaged.prompt_concepts.__wrapped__()
