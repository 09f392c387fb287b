"""Words: the rendered template, token ids small and full, cleaned rewritten prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from petzval.conditioning import template
from petzval.conditioning.reasoner import clean_rewritten_prompt
from petzval.conditioning.vocabulary import SPECIAL_TOKENS, load_ranks, tokenizer_json
from petzval.inference.goldens.case import CaseResult, fault, judge, unchecked
from petzval.inference.goldens.folder import GoldenFolder, Subject

_PADDING = "<|endoftext|>"
_KNOWN = {"date", "txt_offset", "cases", "batch", "batch_truncated"}
_KNOWN_IN_CASE = {"prompt", "date", "rendered", "tiny_input_ids", "gpt_oss_input_ids"}


def check_tokenizer(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Every prompt's text and ids, and padded and truncated batches."""
    stored = golden.json("tokenizer_cases.json")
    if "txt_offset" in stored:
        error = abs(stored["txt_offset"] - template.PREFIX_LENGTH)
        yield judge("tokenizer/txt_offset", error, 0, "tokens before the prompt")
    cases: list[dict[str, Any]] = stored.get("cases", [])
    full = _full_ids([case["rendered"] for case in cases if "gpt_oss_input_ids" in case])
    for index, case in enumerate(cases):
        name = f"tokenizer/{index}"
        date = case.get("date", golden.date)
        rendered = template.cut_at_end_of_text(template.render(case["prompt"], date))
        if "rendered" in case:
            yield judge(f"{name} rendered", float(rendered != case["rendered"]), 0, "texts")
        if "tiny_input_ids" in case:
            tokens = subject.tokenizer.encode(case["prompt"], date=date, markers="reference")
            yield _same_ids(f"{name} ids", tokens.ids, case["tiny_input_ids"])
        if "gpt_oss_input_ids" in case:
            got = full[case["rendered"]]
            yield _same_ids(f"{name} full ids", got, case["gpt_oss_input_ids"])
        for unknown in sorted(set(case) - _KNOWN_IN_CASE):
            yield unchecked(f"{name} {unknown}", "no check for this entry")
    for key, batch in stored.items():
        if isinstance(batch, dict) and "prompts" in batch:
            yield from _check_batch(f"tokenizer/{key}", batch, golden.date, subject)
        elif key not in _KNOWN:
            yield unchecked(f"tokenizer/{key}", "no check for this entry")


def _check_batch(
    name: str, batch: dict[str, Any], date: str, subject: Subject
) -> Iterator[CaseResult]:
    """Right padding to the longest, truncation of the whole conversation."""
    longest = batch.get("max_length", 512)
    rows = [
        subject.tokenizer.encode(
            prompt,
            date=batch.get("date", date),
            max_tokens=longest,
            truncate="reference",
            markers="reference",
        ).ids
        for prompt in batch["prompts"]
    ]
    width = max(len(row) for row in rows)
    padding = subject.tokenizer.special_id(_PADDING)
    padded = [[*row, *[padding] * (width - len(row))] for row in rows]
    masks = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    wrong = sum(a != b for a, b in zip(padded, batch["input_ids"], strict=True))
    yield judge(f"{name} ids", wrong, 0, "rows that differ")
    wrong = sum(a != b for a, b in zip(masks, batch["attention_mask"], strict=True))
    yield judge(f"{name} mask", wrong, 0, "rows that differ")


def _same_ids(name: str, got: Sequence[int], expected: Sequence[int]) -> CaseResult:
    if len(got) != len(expected):
        return fault(name, f"{len(got)} tokens, expected {len(expected)}")
    wrong = sum(a != b for a, b in zip(got, expected, strict=True))
    return judge(name, wrong, 0, "tokens that differ")


def _full_ids(texts: Sequence[str]) -> dict[str, list[int]]:
    """Ids in the full vocabulary.

    Only tokens that occur in the texts as bytes can take part in a merge there, so a tokenizer of
    those alone cuts them as the full one does, and is made in no time.
    """
    if not texts:
        return {}
    ranks = load_ranks()
    joined = "\n".join(texts).encode()
    occurring = sorted((t for t in ranks if len(t) == 1 or t in joined), key=lambda t: ranks[t])
    small = Tokenizer.from_str(tokenizer_json({token: i for i, token in enumerate(occurring)}))
    numbers = [ranks[token] for token in occurring]
    numbers += [len(ranks) + offset for offset in range(len(SPECIAL_TOKENS))]
    return {
        text: [numbers[i] for i in small.encode(text, add_special_tokens=False).ids]
        for text in texts
    }


def check_rewriting(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Raw answers of a language model and the prompts in them."""
    for index, case in enumerate(golden.json("reasoner_clean_cases.json")):
        got = clean_rewritten_prompt(case["raw"])
        detail = "" if got == case["clean"] else f"got {got[:60]!r}"
        yield judge(f"reasoner/{index}", float(got != case["clean"]), 0, detail)
