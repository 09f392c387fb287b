"""Shares with honest uncertainty: bootstrap over prompts, since pictures of one prompt go together.

Efron's percentile bootstrap on clusters; where every cluster agrees it has nothing to resample, and
Wilson's score interval on the number of clusters takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A mean of values in [0, 1] and its confidence interval.

    Attributes:
        num_values, num_clusters: pictures, and the prompts they belong to.
    """

    mean: float
    low: float
    high: float
    num_values: int
    num_clusters: int


def cluster_bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Share:
    """Mean of `values` with a percentile interval from resampling whole clusters.

    Args:
        values: in [0, 1], at least one.
        clusters: which cluster each value belongs to.
        confidence: 0 to 1.
        seed: of the resampling; the same arguments give the same interval.
    """
    if len(values) != len(clusters) or not values:
        raise ValueError(f"{len(values)} values for {len(clusters)} clusters; at least one needed")
    totals: dict[Hashable, float] = {}
    sizes: dict[Hashable, int] = {}
    for value, cluster in zip(values, clusters, strict=True):
        totals[cluster] = totals.get(cluster, 0.0) + value
        sizes[cluster] = sizes.get(cluster, 0) + 1
    total = np.array([totals[cluster] for cluster in totals])
    size = np.array([float(sizes[cluster]) for cluster in totals])
    mean = float(total.sum() / size.sum())
    count = len(total)
    each = total / size
    if bool(np.all(each == each[0])) and each[0] in (0.0, 1.0):
        low, high = wilson(mean, count, confidence=confidence)
    else:
        rng = np.random.Generator(np.random.Philox(seed))
        drawn = rng.integers(count, size=(num_resamples, count))
        means = total[drawn].sum(axis=1) / size[drawn].sum(axis=1)
        tail = (1 - confidence) / 2
        low, high = (float(v) for v in np.quantile(means, [tail, 1 - tail]))
    return Share(mean=mean, low=low, high=high, num_values=len(values), num_clusters=count)


def wilson(share: float, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share observed in `count` independent trials."""
    z = _normal_quantile(1 - (1 - confidence) / 2)
    denominator = 1 + z * z / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, (centre - spread) / denominator), min(1.0, (centre + spread) / denominator)


def _normal_quantile(probability: float) -> float:
    """Inverse of the normal distribution function, by bisection."""
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2
