"""Timing that survives a noisy machine: warm-up, interleaved rounds, medians, ratios per round."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Prepared, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of one way over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Median, and the quartiles as spread (the extremes where there are fewer than four)."""
        ordered = sorted(seconds)
        if len(ordered) < 4:
            return cls(median=statistics.median(ordered), low=ordered[0], high=ordered[-1])
        low, _, high = statistics.quantiles(ordered, n=4)
        return cls(median=statistics.median(ordered), low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The numbers of one case; `as_row` makes the JSON that is kept.

    Attributes:
        ratios: way → how many times as fast as the first way; median over rounds of the ratio
            within the round, so that a busy moment slows both sides of it.
        difference: largest absolute difference of any way's result from the first way's.
        peak_mib: largest resident memory of the process that measured, all ways together.
        met: whether the case's own limits hold.
    """

    timings: dict[str, Timing]
    ratios: dict[str, float]
    difference: float | None
    peak_mib: float
    met: bool
    dtype: str
    facts: dict[str, float | str] = field(default_factory=dict[str, "float | str"])

    def as_row(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def _timed(work: Work) -> tuple[float, Tensor | None]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_mib() -> float:
    """Largest resident set of this process or of its largest child so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in both) / unit


def measure(case: Case) -> Measurement:
    """Set the case up, warm every way once, then run all ways in turn `rounds` times."""
    if case.threads:
        torch.set_num_threads(case.threads)
    with torch.inference_mode():
        prepared: Prepared = case.prepare()
        results = {name: _timed(work)[1] for name, work in prepared.ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in prepared.ways}
        for _ in range(case.rounds):
            for name, work in prepared.ways.items():
                seconds[name].append(_timed(work)[0])
    first = next(iter(prepared.ways))
    timings = {name: Timing.of(values) for name, values in seconds.items()}
    ratios = {
        name: statistics.median(
            slow / fast for slow, fast in zip(seconds[first], values, strict=True)
        )
        for name, values in seconds.items()
    }
    difference = _difference(results[first], list(results.values()))
    return Measurement(
        timings=timings,
        ratios=ratios,
        difference=difference,
        peak_mib=peak_mib(),
        met=_met(case, timings, ratios, difference),
        dtype=prepared.dtype,
        facts=dict(prepared.facts),
    )


def _difference(first: Tensor | None, results: list[Tensor | None]) -> float | None:
    if first is None or len(results) < 2:
        return None
    others = [result for result in results[1:] if result is not None]
    return max(float((first.float() - other.float()).abs().max()) for other in others)


def _met(
    case: Case, timings: dict[str, Timing], ratios: dict[str, float], difference: float | None
) -> bool:
    last = list(timings)[-1]
    fast_enough = case.min_ratio is None or ratios[last] >= case.min_ratio
    short_enough = case.max_seconds is None or timings[last].median <= case.max_seconds
    return fast_enough and short_enough and (difference is None or difference <= case.tolerance)
