"""Rows into shares: per skill, per language, for trained and held-out concepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from petzval.evals.statistics import Share, cluster_bootstrap
from petzval.evals.verdicts import Row
from petzval.scoring.scorer import CHECKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measured share.

    Attributes:
        name: of the group ("single", "en", ...).
        share: judged right.
        chance: what blind guesses would get right, on average over the same rows.
    """

    name: str
    share: Share
    chance: float


def measured(
    name: str, rows: Sequence[Row], value: Callable[[Row], bool], chance: Callable[[Row], float]
) -> Line:
    """One line over rows, at least one; pictures of one prompt form a cluster."""
    share = cluster_bootstrap([float(value(row)) for row in rows], [row.prompt_id for row in rows])
    return Line(name=name, share=share, chance=sum(map(chance, rows)) / len(rows))


def everything(name: str, rows: Sequence[Row]) -> Line:
    """Share of pictures on which everything asked is right."""
    return measured(name, rows, lambda row: row.passed, lambda row: math.prod(row.chance.values()))


def one_check(check: str, rows: Sequence[Row]) -> Line | None:
    """Share of pictures on which one thing is right, among those where it was asked."""
    asked = [row for row in rows if check in row.checks]
    if not asked:
        return None
    return measured(check, asked, lambda row: row.checks[check], lambda row: row.chance[check])


def by_check(rows: Sequence[Row]) -> list[Line]:
    """One line for each thing that was asked anywhere."""
    lines = (one_check(check, rows) for check in CHECKS)
    return [line for line in lines if line is not None]


def by_skill(rows: Sequence[Row]) -> list[Line]:
    """One line a skill, in the order of first appearance, and one for all."""
    skills = distinct(row.skill for row in rows)
    lines = [everything(skill, [row for row in rows if row.skill == skill]) for skill in skills]
    return [*lines, everything("all", rows)]


def distinct(values: Iterable[str]) -> list[str]:
    """Values without repetition, in the order of first appearance."""
    return list(dict.fromkeys(values))


def select(
    rows: Iterable[Row],
    *,
    language: str | None = None,
    skill: str | None = None,
    trained: bool | None = None,
    numbers: frozenset[str] | None = None,
) -> list[Row]:
    """Rows that fit; what is None does not matter."""
    return [
        row
        for row in rows
        if (language is None or row.language == language)
        and (skill is None or row.skill == skill)
        and (trained is None or row.trained == trained)
        and (numbers is None or row.number in numbers)
    ]


def shared_numbers(rows: Sequence[Row]) -> frozenset[str]:
    """Numbers of the prompts that were asked in every language of `rows`."""
    languages = distinct(row.language for row in rows)
    sets = [{row.number for row in rows if row.language == one} for one in languages]
    return frozenset(set.intersection(*sets)) if sets else frozenset()
