"""A random order of any number of things without an array: each position is computed by itself.

A Feistel network on the smallest number of bits that holds the size is a permutation of
0 … 2^bits - 1; positions whose image lies outside are sent through again until it lies inside
(cycle walking, Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). With fewer than
twice as many codes as things, that is less than two turns on average.

The round function is a mixer for speed (splitmix64's), not a cipher: orders are random enough to
train on and are no secret.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from petzval.data.randomness import raw_numbers

NUM_ROUNDS = 8
MAX_SIZE = 1 << 62

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    words = (words ^ (words >> _SHIFTS[0])) * _MULTIPLIERS[0]
    words = (words ^ (words >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return words ^ (words >> _SHIFTS[2])


@dataclass(frozen=True, slots=True)
class Permutation:
    """The order of `size` things in one epoch of one bucket.

    Attributes:
        size: number of things, at least 1.
        seed, epoch, bucket: the key; another epoch is another order.
    """

    size: int
    seed: int
    epoch: int
    bucket: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"a permutation has 1 to {MAX_SIZE} things, got {self.size}")

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands at these positions; every position costs the same.

        Raises:
            IndexError: a position is not within 0 … size - 1.
        """
        if positions.size and not 0 <= positions.min() <= positions.max() < self.size:
            raise IndexError(f"a position is not within 0 … {self.size - 1}")
        keys = raw_numbers(NUM_ROUNDS, "order", self.seed, self.epoch, self.bucket)
        values = self._turn(positions.astype(np.uint64), keys)
        outside = values >= self.size
        while bool(outside.any()):
            values[outside] = self._turn(values[outside], keys)
            outside = values >= self.size
        return values.astype(np.int64)

    def _turn(self, values: NDArray[np.uint64], keys: list[int]) -> NDArray[np.uint64]:
        """Once through the network: the two halves change each other by turns."""
        num_bits = (self.size - 1).bit_length()
        low_bits = num_bits // 2
        low_mask = np.uint64((1 << low_bits) - 1)
        high_mask = np.uint64((1 << (num_bits - low_bits)) - 1)
        low, high = values & low_mask, values >> np.uint64(low_bits)
        for number, key in enumerate(keys):
            if number % 2:
                low = low ^ (_mix(high ^ np.uint64(key)) & low_mask)
            else:
                high = high ^ (_mix(low ^ np.uint64(key)) & high_mask)
        return (high << np.uint64(low_bits)) | low
