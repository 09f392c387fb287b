"""Which samples share a rank: bins of equal cost under one token budget.

A sample of n tokens (image and text) costs a n + b n^2: projections are linear in n, attention is
quadratic. For the denoiser a / b = 6 x width (24 width^2 against 4 width operations), so that cost
is counted in whole units of b: n (linear_tokens + n). Whole numbers compare the same everywhere.

Longest processing time first (Graham 1969): samples in falling order of cost, each into the bin of
least cost that has room for it. Departures, numbered:
  1. Samples that have waited go in first, so that none waits twice.
  2. A bin may also be full by cost; the cap follows from what the pool would give each bin.
  3. Afterwards holes are filled: one or two samples that are left over come into a bin and at most
     one goes out, whichever exchange fills most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from petzval.config import check_ranges, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Relative time of a sample of n tokens: n (linear_tokens + n).

    Attributes:
        linear_tokens: the length at which attention costs as much as everything else. From the
            count of operations it is 6 x width; a machine's own value comes from `fit`.
    """

    linear_tokens: int = setting(6 * 1536, minimum=0)

    def __post_init__(self) -> None:
        check_ranges(self, where="cost model")

    def cost(self, num_tokens: int) -> int:
        """Cost of one sample."""
        return num_tokens * (self.linear_tokens + num_tokens)

    @classmethod
    def fit(cls, lengths: Sequence[int], seconds: Sequence[float]) -> CostModel:
        """From measured times of single samples of several lengths: least squares of a n + b n^2.

        Raises:
            ValueError: fewer than two lengths, or times that do not grow faster than the length.
        """
        if len(lengths) != len(seconds) or len(set(lengths)) < 2:
            raise ValueError("a cost model needs times of at least two different lengths")
        columns = np.stack((np.asarray(lengths, dtype=float), np.square(lengths, dtype=float)), 1)
        times = np.asarray(seconds, dtype=float)
        linear, quadratic = np.linalg.lstsq(columns, times, rcond=None)[0]
        if quadratic <= 0:
            raise ValueError("these times do not grow faster than the length; measure longer ones")
        return cls(linear_tokens=max(0, round(float(linear / quadratic))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Numbers of the samples in each bin, and of those left over; each in rising order."""

    bins: tuple[tuple[int, ...], ...]
    left_over: tuple[int, ...]


@dataclass(slots=True)
class _Bin:
    members: list[int] = field(default_factory=list[int])
    tokens: int = 0
    cost: int = 0


def pack(
    lengths: Sequence[int],
    num_bins: int,
    token_budget: int,
    cost_model: CostModel,
    *,
    num_waiting: int = 0,
    slack: float = 0.02,
) -> Packing:
    """Distribute samples over bins.

    Args:
        lengths: tokens of each sample, image and text together.
        num_bins: bins to fill.
        token_budget: most tokens of a bin.
        cost_model: what a length costs.
        num_waiting: the first so many samples have waited: they go in first and stay in.
        slack: a bin's cost may exceed its share of a full step by this fraction.

    Raises:
        ValueError: a sample is longer than the budget.
    """
    if max(lengths, default=0) > token_budget:
        raise ValueError(f"a sample of {max(lengths)} tokens exceeds the budget of {token_budget}")
    costs = [cost_model.cost(length) for length in lengths]
    cap = (1 + slack) * sum(costs) * token_budget / max(sum(lengths), 1)
    bins = [_Bin() for _ in range(num_bins)]
    order = sorted(range(len(lengths)), key=lambda i: (i >= num_waiting, -costs[i], i))
    left_over: list[int] = []
    for sample in order:
        limit = cap if sample >= num_waiting else float("inf")
        room = [
            each
            for each in bins
            if each.tokens + lengths[sample] <= token_budget and each.cost + costs[sample] <= limit
        ]
        if room:
            _move(min(room, key=lambda each: each.cost), sample, lengths, costs, 1)
        else:
            left_over.append(sample)
    left_over = _fill(bins, left_over, lengths, costs, token_budget, cap, num_waiting)
    return Packing(
        bins=tuple(tuple(sorted(each.members)) for each in bins),
        left_over=tuple(sorted(left_over)),
    )


def _move(
    target: _Bin, sample: int, lengths: Sequence[int], costs: Sequence[int], sign: int
) -> None:
    """Put a sample in (1) or take it out (-1)."""
    if sign > 0:
        target.members.append(sample)
    else:
        target.members.remove(sample)
    target.tokens += sign * lengths[sample]
    target.cost += sign * costs[sample]


def _fill(
    bins: list[_Bin],
    left_over: list[int],
    lengths: Sequence[int],
    costs: Sequence[int],
    token_budget: int,
    cap: float,
    num_waiting: int,
) -> list[int]:
    """Fill holes, the largest first: one or two left-over samples come in, at most one goes out.

    Of all such exchanges that stay within budget and cap, the one that fills the most is made.
    """
    for target in sorted(bins, key=lambda each: each.tokens):
        going = [None, *(i for i in target.members if i >= num_waiting)]
        coming = [(i,) for i in left_over] + list(combinations(left_over, 2))
        if not coming:
            break
        gain = _differences(coming, going, lengths)
        dearer = _differences(coming, going, costs)
        allowed = (gain <= token_budget - target.tokens) & (dearer <= cap - target.cost)
        gain = np.where(allowed, gain, 0)
        best = int(gain.argmax())
        if gain.flat[best] <= 0:
            continue
        entering, leaving = coming[best // len(going)], going[best % len(going)]
        left_over = [i for i in left_over if i not in entering]
        if leaving is not None:
            _move(target, leaving, lengths, costs, -1)
            left_over.append(leaving)
        for sample in entering:
            _move(target, sample, lengths, costs, 1)
    return left_over


def _differences(
    coming: Sequence[tuple[int, ...]], going: Sequence[int | None], values: Sequence[int]
) -> NDArray[np.int64]:
    """[coming, going]: what a bin's sum grows by in each exchange."""
    entering = np.array([sum(values[i] for i in group) for group in coming], dtype=np.int64)
    leaving = np.array([0 if i is None else values[i] for i in going], dtype=np.int64)
    return entering[:, None] - leaving[None, :]
