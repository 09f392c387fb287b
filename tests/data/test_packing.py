"""Bins within budget, of equal cost, nothing lost; waiting samples first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petzval.data.packing import CostModel, pack
from petzval.errors import ConfigError

COST = CostModel()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 100), max_size=40),
    num_bins=st.integers(1, 6),
    waiting=st.integers(0, 5),
)
def test_every_sample_is_in_one_bin_or_left_over(
    lengths: list[int], num_bins: int, waiting: int
) -> None:
    packing = pack(lengths, num_bins, 100, COST, num_waiting=min(waiting, len(lengths)))
    placed = [sample for members in packing.bins for sample in members]
    assert sorted([*placed, *packing.left_over]) == list(range(len(lengths)))
    assert len(packing.bins) == num_bins
    for members in packing.bins:
        assert sum(lengths[sample] for sample in members) <= 100


def test_longest_go_first_each_to_the_cheapest_bin() -> None:
    packing = pack([30, 70, 60, 40], 2, 100, COST, slack=1.0)
    assert packing.bins == ((0, 1), (2, 3))
    assert packing.left_over == ()


def test_a_hole_is_filled_by_an_exchange_with_what_is_left_over() -> None:
    """50 and 40 go in first and leave 9 for nothing; 49 in place of 40 fills it."""
    packing = pack([50, 40, 49, 25], 1, 99, COST, slack=1.0)
    assert packing.bins == ((0, 2),)
    assert packing.left_over == (1, 3)


def test_two_may_come_for_one_that_goes() -> None:
    lengths = [60, 30, 20, 19]
    packing = pack(lengths, 1, 99, COST, slack=1.0)
    assert packing.bins == ((0, 2, 3),)
    assert packing.left_over == (1,)


def test_samples_that_waited_go_in_first_and_stay() -> None:
    lengths = [10, 95, 50]
    assert pack(lengths, 1, 100, COST).bins == ((1,),)
    waited = pack(lengths, 1, 100, COST, num_waiting=1)
    assert waited.bins == ((0, 2),)
    assert waited.left_over == (1,)


def test_a_bin_may_be_full_by_cost() -> None:
    """One long sample costs more than its tokens say: short ones do not fill up beside it."""
    quadratic = CostModel(linear_tokens=0)
    lengths = [80, *[10] * 12]
    loose = pack(lengths, 2, 100, quadratic, slack=9.0)
    tight = pack(lengths, 2, 100, quadratic, slack=-0.2)
    assert all(0 not in members for members in tight.bins)
    assert any(0 in members for members in loose.bins)


def test_a_sample_beyond_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="101 tokens exceeds the budget of 100"):
        pack([5, 101], 2, 100, COST)


def test_the_cost_is_that_of_the_operations() -> None:
    """24 width^2 n + 4 width n^2, in units of 4 width."""
    width, n = 1536, 4096
    assert COST.cost(n) * 4 * width == 24 * width**2 * n + 4 * width * n**2


def test_a_cost_model_is_fitted_from_times() -> None:
    lengths = [500, 1000, 2000, 4000]
    seconds = [1e-9 * n * (7000 + n) for n in lengths]
    assert CostModel.fit(lengths, seconds).linear_tokens == 7000


@pytest.mark.parametrize(
    ("lengths", "seconds", "message"),
    [
        ([100, 100], [1.0, 1.0], "two different lengths"),
        ([100], [1.0], "two different lengths"),
        ([100, 200], [1.0], "two different lengths"),
        ([100, 200, 400], [1.0, 1.9, 3.0], "measure longer ones"),
    ],
)
def test_times_that_fit_no_model(lengths: list[int], seconds: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostModel.fit(lengths, seconds)


def test_a_negative_cost_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        CostModel(linear_tokens=-1)
