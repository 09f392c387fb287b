"""The cleaning of a rewritten prompt, against pairs recorded from the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petzval.conditioning.reasoner import clean_rewritten_prompt


def test_every_recorded_pair_is_cleaned_alike(goldens: Path) -> None:
    pairs = json.loads((goldens / "reasoner_clean_cases.json").read_text(encoding="utf-8"))
    assert len(pairs) == 18
    for pair in pairs:
        assert clean_rewritten_prompt(pair["raw"]) == pair["clean"], pair["raw"]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("analysis\nThe user wants a bird.\nfinal\nA blue bird.", "A blue bird."),
        ("<think>a</think><think>b</think> A hill.", "A hill."),
        ("a shop assistant finalizing a sale", "a shop assistant finalizing a sale"),
        ("<|start|>assistant<|message|>One<|start|>assistant<|message|>Two", "Two"),
        ("assistant analysis: nothing yet", ""),
        ("```\nA tree.", "``` A tree."),
        ('"', '"'),
        ("<|start|>user<|message|>A pond<|end|>", "A pond"),
        ("   \n\t", ""),
    ],
)
def test_other_shapes_of_answer(raw: str, clean: str) -> None:
    assert clean_rewritten_prompt(raw) == clean


def test_a_very_long_answer_is_cleaned_quickly() -> None:
    assert clean_rewritten_prompt("<think>" * 20_000 + "x") == "<think>" * 20_000 + "x"
    assert clean_rewritten_prompt("assistant " * 10_000 + "final fox") == "fox"
    assert clean_rewritten_prompt("analysis" + "\n" * 100_000) == ""
