"""Numbers as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from petzval.evals.statistics import Share
from petzval.evals.summary import Line


def percent(value: float) -> str:
    """0.417 -> "42 %"; small chances keep a digit."""
    scaled = 100 * value
    return f"{scaled:.1f} %" if 0 < scaled < 5 else f"{scaled:.0f} %"


def percent_with_interval(share: Share) -> str:
    """ "42 % (35-49)"."""
    return f"{percent(share.mean)} ({100 * share.low:.0f}–{100 * share.high:.0f})"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    names = list(header)
    lines = [
        "| " + " | ".join(names) + " |",
        "|---" + "|--:" * (len(names) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def chance_table(lines: Iterable[Line]) -> str:
    """Shares with their intervals and chance levels."""
    return table(
        ("what", "n", "right", "chance"),
        (
            (
                line.name,
                str(line.share.num_values),
                percent_with_interval(line.share),
                percent(line.chance),
            )
            for line in lines
        ),
    )
