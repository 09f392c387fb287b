"""A JSON line a run, and what the runs say with their uncertainty."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petzval.config import to_mapping
from research.claims.arms import Protocol

RECORD = Path(__file__).parent.parent / "results" / "claims.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One arm with one seed.

    Attributes:
        scores: at each step that was tried, in order: names as `trial.examine` gives them.
        facts: parameters, seconds, versions, machine.
    """

    arm: str
    seed: int
    protocol: str
    scores: dict[int, dict[str, float]]
    facts: dict[str, Any]

    @property
    def final(self) -> dict[str, float]:
        """Scores at the end."""
        return self.scores[max(self.scores)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds and its standard error; the error of one seed alone is not known."""

    mean: float
    error: float
    num_seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of one value a seed.

        Raises:
            ValueError: no values.
        """
        if not values:
            raise ValueError("no values to take a mean of")
        count = len(values)
        mean = sum(values) / count
        if count == 1:
            return cls(mean=mean, error=math.nan, num_seeds=1)
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        return cls(mean=mean, error=math.sqrt(variance / count), num_seeds=count)

    @property
    def verdict(self) -> str:
        """Of a difference: whether it is more than two standard errors from nothing."""
        if self.num_seeds < 3:
            return "too few seeds"
        if self.mean > 2 * self.error:
            return "seen"
        return "the opposite is seen" if self.mean < -2 * self.error else "not seen"

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.error:.3f}"


def protocol_id(protocol: Protocol) -> str:
    """A name for all settings but the seeds: runs of different protocols are never mixed."""
    settings = {key: value for key, value in to_mapping(protocol).items() if key != "seeds"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def load(protocol: Protocol, path: Path = RECORD) -> list[Run]:
    """Finished runs of this protocol; none where nothing is recorded yet."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [
        Run(
            arm=row["arm"],
            seed=row["seed"],
            protocol=row["protocol"],
            scores={int(step): scores for step, scores in row["scores"].items()},
            facts=row["facts"],
        )
        for row in rows
        if row["protocol"] == protocol_id(protocol)
    ]


def append(run: Run, path: Path = RECORD) -> None:
    """One line more, whole or not at all as far as one write is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {
        "arm": run.arm,
        "seed": run.seed,
        "protocol": run.protocol,
        "scores": {
            str(step): {name: round(value, 5) for name, value in scores.items()}
            for step, scores in run.scores.items()
        },
        "facts": run.facts,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def of_arm(runs: Iterable[Run], arm: str, name: str, step: int | None = None) -> Estimate | None:
    """A score of an arm, at the end or at a step; None where it was never measured."""
    own = [run for run in runs if run.arm == arm]
    found = [run.final if step is None else run.scores.get(step, {}) for run in own]
    values = [scores[name] for scores in found if name in scores]
    return Estimate.of(values) if values else None


def difference(runs: Sequence[Run], arm: str, other: str, name: str) -> Estimate | None:
    """`arm` less `other`, seed by seed; None where no seed has both."""
    by_seed = {(run.arm, run.seed): run.final for run in runs}
    values = [
        by_seed[arm, seed][name] - by_seed[other, seed][name]
        for seed in sorted({run.seed for run in runs})
        if (arm, seed) in by_seed and (other, seed) in by_seed
    ]
    return Estimate.of(values) if values else None
