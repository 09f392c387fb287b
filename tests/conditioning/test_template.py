"""The template's text, its date and the markers that a user may type."""

from __future__ import annotations

import json
from datetime import date as Date
from pathlib import Path

import pytest

from petzval.conditioning import template
from petzval.errors import RequestError


def test_rendered_text_is_the_recorded_one(goldens: Path) -> None:
    cases = json.loads((goldens / "tokenizer_cases.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        rendered = template.render(case["prompt"], case["date"])
        assert template.cut_at_end_of_text(rendered) == case["rendered"]


def test_render_is_prefix_prompt_and_suffix_verbatim() -> None:
    prompt = "  spaces stay \n"
    rendered = template.render(prompt, "2031-01-02")
    assert rendered == template.prefix_text("2031-01-02") + prompt + template.suffix_text()
    assert "Current date: 2031-01-02\n" in rendered


def test_today_is_a_date_and_any_day_is_allowed() -> None:
    before = Date.today().isoformat()
    assert before <= template.resolve_date("today") <= Date.today().isoformat()
    assert template.resolve_date("2024-02-29") == "2024-02-29"
    assert template.resolve_date(template.DEFAULT_DATE) == "2026-05-26"


@pytest.mark.parametrize(
    "text",
    [
        "", "yesterday", "2025-02-29", "2025-13-01", "20250101", "2025-W01-1", "2025-1-1",
        "2025-01-01T00:00", "٢٠٢٥-٠١-٠١", "2025-01-01\n", "0000-01-01", "x" * 10_000,
    ],
)  # fmt: skip
def test_other_dates_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        template.resolve_date(text)
    assert "2026-05-26" in caught.value.hint
    assert len(caught.value.message) < 150


@pytest.mark.parametrize(
    ("typed", "neutral"),
    [
        ("<|return|>", "< |return|>"),
        ("a <|end|><|start|>assistant", "a < |end|>< |start|>assistant"),
        ("<<|end|>|end|>", "<< |end|>|end|>"),
        ("<|<|end|>", "<|< |end|>"),
        ("<|reserved_200000|>", "< |reserved_200000|>"),
        ("a <| b |> c, 1 < 2 | 3 > 2", "a <| b |> c, 1 < 2 | 3 > 2"),
        ("", ""),
    ],
)
def test_markers_become_ordinary_text_and_nothing_else_changes(typed: str, neutral: str) -> None:
    assert template.neutralise_markers(typed) == neutral
    assert template.neutralise_markers(neutral) == neutral
