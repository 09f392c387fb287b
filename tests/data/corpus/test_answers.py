from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from petzval.data.corpus.answers import judge, without_absent_text
from petzval.data.corpus.budget import Budget, BudgetLimits, BudgetSpent
from petzval.data.corpus.ledger import Entry, Ledger, read_ledger
from petzval.errors import ConfigError, DataError

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot describe this picture.",
    "Unfortunately, I am unable to identify people.",
    "Sorry, I won't do that.",
    "As an AI, I do not see pictures.",
    "I cannot assist with this request.",
)
CAPTIONS = (
    'A sign on a shop door reads "Sorry, we\'re closed" in red letters.',
    "Sorry-looking dandelions stand in a green vase.",
    "I-beams of a steel bridge cross a river at dusk.",
    "Can openers lie in a drawer.",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text: str) -> None:
    judged = judge(text, max_words=500)
    assert judged.status == "refusal" and judged.text == "" and judged.reason == text


@pytest.mark.parametrize("text", CAPTIONS)
def test_what_only_looks_like_one(text: str) -> None:
    assert judge(text, max_words=500).text == text


def test_a_long_answer_that_starts_like_a_refusal_is_a_caption() -> None:
    text = "I can't name the person. " + "A man in a red coat sits on a bench. " * 10
    assert judge(text, max_words=500).status == "caption"


@pytest.mark.parametrize("text", ["", " \n\t", "...", "\u200b", "!?", "\x00"])
def test_empty_answers(text: str) -> None:
    assert judge(text, max_words=500).status == "empty"


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("  A cat\n\nsits. ", "A cat sits."),
        ("Caption: A cat.", "A cat."),
        ('"A cat sits."', "A cat sits."),
        (
            '"Open" says a sign, "closed" another: "so"',
            '"Open" says a sign, "closed" another: "so"',
        ),
        ("A \x07bell\x1b[31m.", "A bell [31m."),
    ],
)
def test_form(text: str, mended: str) -> None:
    assert judge(text, max_words=500).text == mended


def test_length_is_cut_at_a_sentence() -> None:
    text = 'One two three. Four five "six." Seven eight nine ten.'
    assert judge(text, max_words=8).text == 'One two three. Four five "six."'
    assert judge(text, max_words=8).reason == "shortened from 10 words"
    assert judge(text, max_words=2).status == "overlong"
    assert judge("一只猫。两只狗。 第三", max_words=500, cut_off=True).text == "一只猫。两只狗。"


@pytest.mark.parametrize(
    "remark",
    [
        "There is no visible text in the image.",
        "No text is present.",
        "The picture does not contain any text or watermarks.",
        "There are no readable words.",
    ],
)
def test_remarks_that_there_is_no_text_are_left_out(remark: str) -> None:
    judged = judge(f"A cat sits. {remark} Behind it is a wall.", max_words=500)
    assert judged.text == "A cat sits. Behind it is a wall."
    assert "no text" in judged.reason
    assert without_absent_text(remark) == remark, "never nothing"


@pytest.mark.parametrize(
    "text",
    [
        "A man sits. There is no chair, and the text on the wall reads \"NO\".",
        'A sign says "No text messages while driving."',
        "There are no people; the words \"OPEN\" glow in green.",
    ],
)  # fmt: skip
def test_text_that_is_there_stays(text: str) -> None:
    assert without_absent_text(text) == text


def entry(number: int, status: str = "caption", text: str = "") -> Entry:
    return Entry(
        id=f"{number:064x}",
        model="m",
        instruction="i",
        length="dense",
        status=status,
        text=text,
    )


def test_a_ledger_keeps_the_first_final_answer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "a.jsonl")
    ledger.add(entry(1, "failed"))
    assert ledger.settled(entry(1).question) is None
    ledger.add(entry(1, text="größer 猫"))
    ledger.add(entry(1, text="another"))
    ledger.close()
    again = Ledger(tmp_path / "deep" / "a.jsonl")
    found = again.settled(entry(1).question)
    assert found is not None and found.text == "größer 猫" and again.entries == 3
    assert [each.status for each in read_ledger(again.path)] == ["failed", "caption", "caption"]


@pytest.mark.parametrize("keep", [0, 1, 40, -1])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.jsonl"
    ledger = Ledger(path)
    ledger.add(entry(1))
    first = path.stat().st_size
    ledger.add(entry(2, text="x" * 200_000))
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: first + keep] if keep >= 0 else whole[:-1])
    torn = Ledger(path)
    assert torn.entries == 1 and torn.settled(entry(2).question) is None
    torn.add(entry(3))
    torn.close()
    assert [each.id for each in read_ledger(path)] == [entry(1).id, entry(3).id]
    assert path.read_bytes().startswith(whole[:first])


def test_a_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        Ledger(tmp_path / "file" / "a.jsonl").add(entry(1))


def test_a_budget_waits_for_what_may_be_left() -> None:
    async def two_at_once() -> list[str]:
        budget = Budget(BudgetLimits(tokens=250, first_prompt=100))
        diary: list[str] = []

        async def one(name: str, used: tuple[int, int]) -> None:
            try:
                reserved = await budget.reserve(50)
            except BudgetSpent:
                diary.append(f"{name} stops")
                return
            diary.append(f"{name} asks")
            await asyncio.sleep(0.01)
            await budget.settle(reserved, used)

        # Both could cost 150 of 250. The first takes 90, so that the second finds room.
        await asyncio.gather(one("a", (80, 10)), one("b", (80, 10)))
        await one("c", (80, 10))
        assert budget.spent == (160, 20)
        return diary

    assert asyncio.run(two_at_once()) == ["a asks", "b asks", "c stops"]


def test_limits_out_of_range() -> None:
    with pytest.raises(ConfigError, match="tokens"):
        BudgetLimits(tokens=-1)
