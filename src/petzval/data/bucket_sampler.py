"""Bucket mode: each virtual rank draws one size of picture (Lens paper section 3).

Departures from the paper, numbered:
  1. The paper gives no probabilities of buckets. By default a bucket is drawn in proportion to the
     batches it has left in the epoch: the epoch is then all its batches in random order, and every
     id is used exactly once.
  2. An epoch ends inside a step, and the step goes on with the next epoch. A bucket's last batch of
     an epoch holds what is left and may be smaller; a batch never mixes epochs.
  3. With fixed shares each bucket has epochs of its own: every id once in each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petzval.data.permutation import Permutation
from petzval.data.randomness import raw_numbers
from petzval.data.sample_stream import (
    GlobalStep,
    RankBatch,
    SamplerState,
    check_stream,
    fingerprint,
    use_of,
)
from petzval.data.sample_table import SampleTable
from petzval.errors import ConfigError

LENS_BATCH_SIZES = ((1024, 24), (2304, 10), (4096, 6))
"""Image tokens of a base area and the samples a rank takes of it: 512, 768 and 1024 squared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketMode:
    """One bucket a virtual rank.

    Attributes:
        batch_sizes: (image tokens, samples) of each base area; a bucket takes those of the area
            nearest in the logarithm of its tokens.
        shares: how often each bucket is drawn, in any unit; None in proportion to what is left.
    """

    batch_sizes: tuple[tuple[int, int], ...] = LENS_BATCH_SIZES
    shares: tuple[float, ...] | None = None


def batch_size_of(image_tokens: int, batch_sizes: tuple[tuple[int, int], ...]) -> int:
    """Samples a rank takes of a bucket: those of the base area nearest in log tokens."""

    def distance(area: tuple[int, int]) -> float:
        return abs(float(np.log(image_tokens / area[0])))

    return min(batch_sizes, key=distance)[1]


class BucketSampler:
    """One bucket a virtual rank, drawn by a counter: see `BucketMode`."""

    def __init__(
        self, table: SampleTable, mode: BucketMode, *, seed: int, num_virtual_ranks: int
    ) -> None:
        if not mode.batch_sizes or min(min(pair) for pair in mode.batch_sizes) < 1:
            raise ConfigError("batch_sizes must be pairs (image tokens, samples), both at least 1")
        self.stream = fingerprint(table, mode, seed, num_virtual_ranks)
        self.batch_sizes = tuple(
            batch_size_of(tokens, mode.batch_sizes) if count else 1
            for tokens, count in zip(table.image_tokens, table.counts, strict=True)
        )
        self._table = table
        self._seed = seed
        self._num_virtual_ranks = num_virtual_ranks
        self._shares = None if mode.shares is None else _whole_shares(mode.shares, table)

    def start(self) -> SamplerState:
        """Nothing taken of any bucket."""
        return SamplerState(stream=self.stream, step=0, taken=(0,) * len(self._table.counts))

    def draw(self, state: SamplerState) -> tuple[GlobalStep, SamplerState]:
        """Virtual ranks draw one after the other, each from what those before it left."""
        check_stream(state, self.stream)
        taken = list(state.taken)
        batches: list[RankBatch] = []
        for number in raw_numbers(self._num_virtual_ranks, "bucket", self._seed, state.step):
            bucket = _pick(number, self._weights(taken))
            batch = self._batch(bucket, taken[bucket])
            taken[bucket] += len(batch)
            batches.append(batch)
        after = SamplerState(stream=self.stream, step=state.step + 1, taken=tuple(taken))
        return GlobalStep(number=state.step, batches=tuple(batches)), after

    def _weights(self, taken: list[int]) -> list[int]:
        """Fixed shares, or the batches that each bucket has left in the epoch."""
        if self._shares is not None:
            return self._shares
        counts = self._table.counts
        epoch = min(done // count for done, count in zip(taken, counts, strict=True) if count)
        left = [count * (epoch + 1) - done for done, count in zip(taken, counts, strict=True)]
        return [-(-each // size) for each, size in zip(left, self.batch_sizes, strict=True)]

    def _batch(self, bucket: int, taken: int) -> RankBatch:
        count = self._table.counts[bucket]
        epoch, start = divmod(taken, count)
        stop = min(start + self.batch_sizes[bucket], count)
        order = Permutation(count, self._seed, epoch, bucket)
        ids = self._table.ids_in_bucket(bucket, order.take(np.arange(start, stop)))
        return tuple(use_of(self._table, int(each), epoch, bucket) for each in ids)


def _whole_shares(shares: tuple[float, ...], table: SampleTable) -> list[int]:
    """Shares as whole numbers, so that a draw is exact."""
    if len(shares) != len(table.counts):
        raise ConfigError(f"{len(shares)} shares were given for {len(table.counts)} buckets")
    if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ConfigError("shares must not be negative, and one must be above 0")
    for bucket, (share, count) in enumerate(zip(shares, table.counts, strict=True)):
        if share and not count:
            raise ConfigError(
                f"bucket {bucket} has a share of {share} and no samples", "give it a share of 0"
            )
    return [round(share / sum(shares) * (1 << 40)) for share in shares]


def _pick(number: int, weights: list[int]) -> int:
    """The entry that a number below 2^64 falls on: number / 2^64 of the way through the weights."""
    target = (number * sum(weights)) >> 64
    for index, weight in enumerate(weights):
        target -= weight
        if target < 0:
            return index
    raise AssertionError("the weights sum to more than the target")
