"""The chat template: what the language model reads before and after a prompt.

Lens describes an image by the hidden states of GPT-OSS over a short conversation in OpenAI's
harmony format: a system message (which prints a date), a developer message that asks for a
description, the prompt as the user's message, and the beginning of the assistant's answer. The
template is written out here as text; its tokens before the prompt, `PREFIX_LENGTH` of them, are
read by the language model and then dropped.
"""

from __future__ import annotations

import re
from datetime import date as Date

from petzval.errors import RequestError

PREFIX_LENGTH = 97
"""Tokens before the prompt. They depend on the date only, never on the prompt."""

SUFFIX_LENGTH = 22
"""Tokens after the prompt."""

DEFAULT_DATE = "2026-05-26"
"""The pinned date. The original prints today's, so there the same seed draws another picture
every day."""

END_OF_TEXT = "<|return|>"
"""The original cuts the rendered conversation at the first of these."""

_SYSTEM = (
    "You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\n"
    "Current date: {date}\n\n"
    "Reasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
_INSTRUCTIONS = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background."
)
_THOUGHT = "Need to generate one image according to the description."

_MARKER_OPENING = re.compile(r"<\|(?=[^|<>\s]+\|>)")
_ISO_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def prefix_text(date: str) -> str:
    """Everything before the prompt. `date` is an ISO date, see `resolve_date`."""
    return (
        f"<|start|>system<|message|>{_SYSTEM.format(date=date)}<|end|>"
        f"<|start|>developer<|message|># Instructions\n\n{_INSTRUCTIONS}\n\n<|end|>"
        "<|start|>user<|message|>"
    )


def suffix_text() -> str:
    """Everything after the prompt: the assistant's thought, and the opening of its answer."""
    return (
        f"<|end|><|start|>assistant<|channel|>analysis<|message|>{_THOUGHT}<|end|>"
        "<|start|>assistant<|channel|>final<|message|>"
    )


def render(prompt: str, date: str) -> str:
    """The whole conversation as text; the prompt stands in it verbatim, not stripped."""
    return f"{prefix_text(date)}{prompt}{suffix_text()}"


def cut_at_end_of_text(rendered: str) -> str:
    """What the original keeps of a rendered conversation when a prompt holds `<|return|>`."""
    return rendered.partition(END_OF_TEXT)[0]


def is_marker(text: str) -> bool:
    """Whether `text` is one whole marker, such as `<|start|>`."""
    return re.fullmatch(r"<\|[^|<>\s]+\|>", text) is not None


def neutralise_markers(prompt: str) -> str:
    """Make ordinary text of markers that a user typed.

    `<|end|>` would otherwise become the token that ends the user's turn, and what follows it
    could pose as the assistant. A space behind the first character takes that power away and
    leaves the words readable: `<|end|>` becomes `< |end|>`. Nothing else is changed.
    """
    return _MARKER_OPENING.sub("< |", prompt)


def resolve_date(text: str) -> str:
    """The ISO date that the template prints.

    Args:
        text: `"today"` (this machine's local date) or a date as `YYYY-MM-DD`.

    Raises:
        RequestError: for anything else, days that do not exist among them.
    """
    if text == "today":
        return Date.today().isoformat()
    if _ISO_DATE.fullmatch(text):
        try:
            return Date.fromisoformat(text).isoformat()
        except ValueError:
            pass
    raise RequestError(
        f"{text[:40]!r} is not a template date; expected 'today' or YYYY-MM-DD",
        f"leave it out for the pinned date {DEFAULT_DATE}",
    )
