"""Orders without arrays: each is a permutation, each key has its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petzval.data.permutation import MAX_SIZE, Permutation

KEYS = {"seed": 3, "epoch": 0, "bucket": 5}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 3000),
    seed=st.integers(0, 2**80),
    epoch=st.integers(0, 9),
    bucket=st.integers(-1, 26),
)
def test_every_thing_has_one_place(size: int, seed: int, epoch: int, bucket: int) -> None:
    order = Permutation(size, seed, epoch, bucket)
    assert sorted(order.take(np.arange(size)).tolist()) == list(range(size))


def test_a_place_is_found_alone_also_among_800_million() -> None:
    order = Permutation(800_000_000, **KEYS)
    places = np.array([0, 799_999_999, 12, 400_000_000])
    together = order.take(places)
    alone = [int(order.take(np.array([place]))[0]) for place in places]
    assert together.tolist() == alone
    assert len(set(alone)) == 4
    assert min(alone) >= 0 and max(alone) < 800_000_000


def test_the_orders_stay_what_they_are() -> None:
    """Recorded once: a change would give every running training another order."""
    assert Permutation(1000, 0, 0, 0).take(np.arange(5)).tolist() == [626, 845, 625, 925, 540]


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 1}, {"bucket": 6}])
def test_another_key_is_another_order(change: dict[str, int]) -> None:
    places = np.arange(1000)
    first = Permutation(1000, **KEYS).take(places)
    second = Permutation(1000, **(KEYS | change)).take(places)
    assert int((first == second).sum()) < 12  # about one agrees by chance
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.12


def test_neighbours_are_torn_apart() -> None:
    values = Permutation(4096, **KEYS).take(np.arange(4096))
    steps = np.abs(np.diff(values))
    assert abs(float(steps.mean()) - 4096 / 3) < 60  # of two random places
    assert abs(float(np.corrcoef(values, np.arange(4096))[0, 1])) < 0.05


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_of_few_things_each_comes_first_alike_often(size: int) -> None:
    seeds = 350
    first = [int(Permutation(size, seed, 0, 0).take(np.array([0]))[0]) for seed in range(seeds)]
    expected = seeds / size
    chi_square = sum((first.count(value) - expected) ** 2 / expected for value in range(size))
    assert chi_square < 22.5  # the 0.1 % point of six degrees of freedom


@pytest.mark.parametrize("place", [-1, 10])
def test_a_place_outside_is_refused(place: int) -> None:
    with pytest.raises(IndexError, match="not within 0 … 9"):
        Permutation(10, **KEYS).take(np.array([3, place]))


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="1 to"):
        Permutation(size, **KEYS)
