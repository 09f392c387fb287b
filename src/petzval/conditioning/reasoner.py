"""What a language model answers when asked to rewrite a prompt, cleaned to the prompt alone.

Around its answer the model may leave markers of the harmony format, thoughts, code fences or
quotes. What is taken away, and in which order, is the original's.
"""

from __future__ import annotations

import re

_FINAL_OPENINGS = (
    re.compile(r"<\|start\|>assistant(?:<\|channel\|>\s*final\s*)?<\|message\|>"),
    re.compile(r"<\|channel\|>\s*final\s*<\|message\|>"),
)
_TURN_END = re.compile(r"<\|(?:return|end|endoftext|call)\|>")
# Markers without their brackets, as a decoder that skips special tokens leaves them. Where a space
# stands between the words the second must be whole: "a shop assistant finalizing a sale" is none.
_PLAIN_FINAL = re.compile(r"assistant(?:final|\s+final\b):?", re.IGNORECASE)
_LINE_FINAL = re.compile(r"^[ \t]*final\b:?", re.IGNORECASE | re.MULTILINE)
_ANALYSIS = re.compile(r"\s*(?:assistant\s*)?analysis", re.IGNORECASE)
_LEFTOVERS = re.compile(
    r"<\|channel\|>\s*(?:analysis|commentary|final)?"
    r"|<\|start\|>\s*(?:assistant|system|developer|user)?"
    r"|<\|[^|<>\s]+\|>"
)


def clean_rewritten_prompt(raw: str) -> str:
    """The prompt inside a language model's answer, on one line.

    Returns:
        "" when only thoughts came back; the caller then keeps the prompt it had.
    """
    text = _final_part(raw.strip())
    text = _without_thoughts(text).rpartition("</think>")[2]
    text = _after_plain_marker(text)
    text = _LEFTOVERS.sub("", text).strip()
    if _ANALYSIS.match(text):
        return ""
    text = _without_quotes(_without_fence(text))
    return " ".join(text.split())


def _final_part(text: str) -> str:
    """What the model said in its final channel, or all of it when there is no sign of one."""
    for opening in _FINAL_OPENINGS:
        found = list(opening.finditer(text))
        if found:
            return _TURN_END.split(text[found[-1].end() :], maxsplit=1)[0]
    return _after_plain_marker(text)


def _after_plain_marker(text: str) -> str:
    found = list(_PLAIN_FINAL.finditer(text))
    if not found and _ANALYSIS.match(text):
        found = list(_LINE_FINAL.finditer(text))
    return text[found[-1].end() :] if found else text


def _without_thoughts(text: str) -> str:
    """Drop `<think>...</think>`; one that is never closed stays."""
    kept: list[str] = []
    position = 0
    # Two searches rather than one lazy pattern, which takes quadratic time on unclosed thoughts.
    while (start := text.find("<think>", position)) >= 0:
        end = text.find("</think>", start)
        if end < 0:
            break
        kept.append(text[position:start])
        position = end + len("</think>")
    return "".join(kept) + text[position:]


def _without_fence(text: str) -> str:
    lines = text.splitlines()
    fenced = len(lines) >= 3 and lines[0].startswith("```") and lines[-1].strip() == "```"
    return "\n".join(lines[1:-1]).strip() if fenced else text


def _without_quotes(text: str) -> str:
    quoted = len(text) >= 2 and text[0] == text[-1] == '"'
    return text[1:-1] if quoted else text
