"""The tables of docs/turbo.md, from what `python -m research.turbo` recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from petzval.evals.comparison import Entry
from petzval.evals.comparison_report import comparison_table, read_entries
from petzval.evals.likeness import Estimate

RESULTS = Path(__file__).resolve().parent.parent / "research" / "results"


def recorded(name: str) -> list[Entry]:
    """Entries of `measure`, `sizes` or `ablate`."""
    return read_entries(RESULTS / f"{name}.jsonl")


def protocol(name: str) -> str:
    """How many prompts and pictures, of which weights."""
    entries = recorded(name)
    first, last = entries[0], entries[-1]
    seeds = first.num_pictures // first.num_prompts
    size = "" if _sizes(entries) > 1 else f", {first.width} × {first.height}"
    return (
        f"{first.num_prompts} held-out prompts, {seeds} seeds each{size}, float32 on a CPU. "
        f"Teacher `{first.checkpoint[:16]}`, student `{last.checkpoint[:16]}`. "
        "After ± the standard error over prompts (jackknife)."
    )


def _sizes(entries: Sequence[Entry]) -> int:
    return len({(entry.height, entry.width) for entry in entries})


def values(name: str) -> str:
    """What was measured."""
    return comparison_table(recorded(name))


def ratios(name: str) -> str:
    """The same as multiples of the first of its size."""
    return comparison_table(recorded(name), relative=True)


def targets() -> str:
    """What was aimed at and what came out, met or not: student against 50 and 4 teacher's steps."""
    entries = recorded("turbo")
    student = entries[-1]
    four = next(one for one in entries if one.steps == 4 and one.guidance != 1)
    bare = next(one for one in entries[:-1] if one.steps == 4 and one.guidance == 1)
    follows, distance = student.ratios["fulfilled"], student.ratios["frechet"]
    variety = student.ratios["variety"]
    rows = [
        ("things fulfilled, of the 50-step teacher's", "at least 0.97", _pm(follows),
         follows.value >= 0.97),
        ("right in everything, of the 50-step teacher's", "at least 0.97",
         _pm(student.ratios["right"]), student.ratios["right"].value >= 0.97),
        ("Fréchet distance, of the 50-step teacher's", "at most 1.25", _pm(distance),
         distance.value <= 1.25),
        ("variety, of the 50-step teacher's", "at least 0.80", _pm(variety),
         variety.value >= 0.8),
        *(
            (f"Fréchet distance, less than that of {other.label}", "by two standard errors",
             f"{_pm(distance)} against {_pm(other.ratios['frechet'])}",
             clearly_less(distance, other.ratios["frechet"]))
            for other in (four, bare)
        ),
        *(
            (f"things fulfilled, more than {other.label}", "by two standard errors",
             f"{_pm(follows)} against {_pm(other.ratios['fulfilled'])}",
             clearly_less(other.ratios["fulfilled"], follows))
            for other in (four, bare)
        ),
    ]  # fmt: skip
    lines = ["| what | aimed at | measured | |", "| --- | --- | --- | --- |"]
    lines += [f"| {a} | {b} | {c} | {'met' if d else '**not met**'} |" for a, b, c, d in rows]
    return "\n".join(lines) + "\n"


def _pm(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ± {estimate.error:.2f}"


def clearly_less(first: Estimate, second: Estimate) -> bool:
    """Whether the first is below the second by twice the error of their difference.

    Both are multiples of one reference on the same prompts; their errors are taken as independent.
    """
    return first.value + 2 * (first.error**2 + second.error**2) ** 0.5 < second.value
