from __future__ import annotations

import numpy as np
import pytest

from petzval.evals.statistics import cluster_bootstrap, wilson


def draw(rng: np.random.Generator, truth: float) -> tuple[list[float], list[int]]:
    """50 prompts with three pictures each; pictures of one prompt share its difficulty."""
    values: list[float] = []
    clusters: list[int] = []
    for prompt in range(50):
        difficulty = float(rng.beta(2 * truth, 2 * (1 - truth)))
        values.extend(float(rng.random() < difficulty) for _ in range(3))
        clusters.extend([prompt] * 3)
    return values, clusters


def test_the_interval_covers_the_known_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth, trials = 0.35, 400
    covered = 0
    for trial in range(trials):
        values, clusters = draw(rng, truth)
        share = cluster_bootstrap(values, clusters, num_resamples=400, seed=trial)
        covered += share.low <= truth <= share.high
    assert 0.91 <= covered / trials <= 0.98


def test_ignoring_the_clusters_would_be_too_sure() -> None:
    values, clusters = draw(np.random.default_rng(1), 0.4)
    together = cluster_bootstrap(values, clusters)
    apart = cluster_bootstrap(values, range(len(values)))
    assert together.mean == apart.mean
    assert together.high - together.low > 1.15 * (apart.high - apart.low)


def test_the_mean_counts_pictures_not_prompts() -> None:
    share = cluster_bootstrap([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert share.mean == 0.75
    assert (share.num_values, share.num_clusters) == (4, 2)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_agree_the_interval_still_has_a_width(value: float) -> None:
    share = cluster_bootstrap([value] * 20, range(20))
    assert share.mean == value
    assert (share.low, share.high) == pytest.approx(wilson(value, 20))
    assert share.high - share.low == pytest.approx(0.161, abs=0.002)


def test_wilson_equals_its_published_values() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_the_same_values_give_the_same_interval() -> None:
    values, clusters = draw(np.random.default_rng(2), 0.5)
    assert cluster_bootstrap(values, clusters) == cluster_bootstrap(values, clusters)


def test_nothing_has_no_share() -> None:
    with pytest.raises(ValueError, match="at least one"):
        cluster_bootstrap([], [])
