"""What a model answered, judged: a caption, mended where that is safe, or what it was instead."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_REFUSAL = re.compile(
    r"(unfortunately,? |i apologi[sz]e,? (but )?|(i['’]m |i am )?(very |so )?sorry,? (but )?)?"
    r"(i (can(no|['’])t|cannot|can not|won['’]t|will not|do not feel|don['’]t feel|must decline)"
    r"|(i['’]m|i am) (unable|not able|not allowed)"
    r"|as an ai\b|this (image|picture|request) (violates|cannot be)"
    r"|we (can(no|['’])t|cannot) (help|assist|provide))",
    re.IGNORECASE,
)
_MAX_REFUSAL_WORDS = 80
"""A refusal is short; a long answer that starts like one goes on to describe the picture."""

_WRITING = r"(?:text|writing|words?|letters|lettering|inscriptions?|captions?|watermarks?)"
_SAYS_THERE_IS_NONE = re.compile(
    rf"(?:there (?:is|are|appears to be|seems to be) no|no)\b[^.,;]*\b{_WRITING}\b[^.,;]*\."
    rf"|[^.,;]*\b(?:does not|doesn['’]t|do not) (?:contain|include|show|have|feature)"
    rf" any\b[^.,;]*\b{_WRITING}\b[^.,;]*\.",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])[\"”»')\]]*(?=\s|$)")
_LEAD = re.compile(r"^(?:caption|description|answer)\s*:\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A status of `petzval.data.corpus.ledger.Entry`, the caption or "", and the reason."""

    status: str
    text: str = ""
    reason: str = ""


def judge(
    text: str, *, max_words: int, cut_off: bool = False, refusal: str = "", filtered: bool = False
) -> Judged:
    """What an answer is.

    Args:
        text: as it came.
        max_words: longer captions end with their last sentence within it.
        cut_off: the model was stopped at its limit of tokens.
        refusal: what the endpoint marks as a refusal.
        filtered: the endpoint's filter of content withheld the answer.
    """
    if refusal.strip():
        return Judged(status="refusal", reason=one_line(refusal)[:300])
    if filtered:
        return Judged(status="refusal", reason="withheld by the endpoint's content filter")
    whole = _LEAD.sub("", one_line(text)).strip()
    if len(whole) > 1 and whole[0] == whole[-1] == '"' and '"' not in whole[1:-1]:
        whole = whole[1:-1].strip()
    if not any(letter.isalnum() for letter in whole):
        return Judged(status="empty", reason="blank" if not whole else "no words in it")
    num_words = len(whole.split())
    if num_words <= _MAX_REFUSAL_WORDS and _REFUSAL.match(whole):
        return Judged(status="refusal", reason=whole[:300])
    kept, reason = whole, ""
    if num_words > max_words or cut_off:
        kept = _whole_sentences(" ".join(whole.split()[:max_words]))
        reason = (
            f"shortened from {num_words} words" if num_words > max_words
            else "the model was stopped at its limit of tokens; its last sentence is left out"
        )  # fmt: skip
    if not kept:
        return Judged(status="overlong", reason=f"no sentence ends within {max_words} words")
    spoken = without_absent_text(kept)
    if spoken != kept:
        reason = "; ".join(filter(None, (reason, "a remark that there is no text is left out")))
    return Judged(status="caption", text=spoken, reason=reason)


def one_line(text: str) -> str:
    """Text in one line: white space made single, control characters and half characters gone."""
    valid = text.encode("utf-8", "replace").decode()
    return " ".join(
        "".join(letter if unicodedata.category(letter) != "Cc" else " " for letter in valid).split()
    )


def without_absent_text(caption: str) -> str:
    """A caption without sentences that only say that the picture shows no text.

    The instruction forbids them (Lens paper, appendix E.1): a model trained on them would learn
    that prompts speak about what is not there. Never leaves nothing.
    """
    sentences = _sentences(caption)
    kept = [each for each in sentences if not _SAYS_THERE_IS_NONE.fullmatch(each)]
    return " ".join(kept) if kept else caption


def _sentences(text: str) -> list[str]:
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    starts = [0, *ends]
    pieces = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [piece.strip() for piece in pieces if piece.strip()]


def _whole_sentences(text: str) -> str:
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""
