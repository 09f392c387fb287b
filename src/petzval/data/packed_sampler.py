"""Packed mode: samples of any size share a rank, up to one token budget and at equal cost.

One order runs through all buckets. A step looks at the samples that wait and at the next ones until
they fill it with a little to spare, packs them (`packing`), and leaves what does not fit to the
next step, where it goes in first. Epochs follow each other without a seam.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petzval.config import check_ranges, setting
from petzval.data.packing import CostModel, Packing, pack
from petzval.data.permutation import Permutation
from petzval.data.sample_stream import (
    GlobalStep,
    Sample,
    SamplerState,
    check_stream,
    fingerprint,
    use_of,
)
from petzval.data.sample_table import SampleTable
from petzval.errors import DataError

MAX_WAITING = 96
"""Samples that may wait for the next step; keeps the state below 1 kB."""

ALL_BUCKETS = -1
"""Stands for the bucket in the key of an order that runs through all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedMode:
    """Samples of any size in one token budget.

    Attributes:
        token_budget: image and text tokens of a virtual rank: the static length of its sequence.
        cost_model: what a length costs; decides the balance between ranks.
        lookahead: how much more than fills the step is looked at, as a fraction; what does not fit
            waits for the next step.
    """

    token_budget: int = setting(24576, minimum=1)
    cost_model: CostModel = CostModel()
    lookahead: float = setting(0.02, minimum=0.0, maximum=0.5)

    def __post_init__(self) -> None:
        check_ranges(self, where="packed mode")


class PackedSampler:
    """Samples in the order of the epoch, packed over the virtual ranks: see `PackedMode`."""

    def __init__(
        self, table: SampleTable, mode: PackedMode, *, seed: int, num_virtual_ranks: int
    ) -> None:
        self.stream = fingerprint(table, mode, seed, num_virtual_ranks)
        self._longest = max(table.image_tokens) + int(table.text_tokens.max())
        if self._longest > mode.token_budget:
            raise DataError(
                "the largest picture with the longest text may have "
                f"{self._longest} tokens, more than the budget of {mode.token_budget}",
                "raise token_budget, or cut the texts shorter",
            )
        self._table = table
        self._mode = mode
        self._seed = seed
        self._num_virtual_ranks = num_virtual_ranks

    def start(self) -> SamplerState:
        """Nothing taken, nothing waiting."""
        return SamplerState(stream=self.stream, step=0, taken=(0,))

    def draw(self, state: SamplerState) -> tuple[GlobalStep, SamplerState]:
        """Waiting samples first, then the next ones; a step that leaves too many takes fewer."""
        check_stream(state, self.stream)
        (taken,) = state.taken
        waiting = [taken - behind for behind in state.waiting]
        places, pool, packing = self._pack(waiting, taken)
        batches = tuple(tuple(pool[i] for i in members) for members in packing.bins)
        end = max([taken, *(place + 1 for place in places)])
        after = SamplerState(
            stream=self.stream,
            step=state.step + 1,
            taken=(end,),
            waiting=tuple(end - places[i] for i in packing.left_over),
        )
        return GlobalStep(number=state.step, batches=batches), after

    def _pack(self, waiting: list[int], taken: int) -> tuple[list[int], list[Sample], Packing]:
        """Places looked at, their samples, and who goes where."""
        budget = self._mode.token_budget * self._num_virtual_ranks
        for fill in (1 + self._mode.lookahead, 1.0, 0.95, 0.75, 0.5, 0.0):
            places, pool = self._pool(waiting, taken, int(budget * fill))
            packing = pack(
                [sample.num_tokens for sample in pool],
                self._num_virtual_ranks,
                self._mode.token_budget,
                self._mode.cost_model,
                num_waiting=len(waiting),
            )
            if len(packing.left_over) <= MAX_WAITING:
                return places, pool, packing
        raise AssertionError("more samples waited than may wait")

    def _pool(
        self, waiting: list[int], taken: int, num_tokens: int
    ) -> tuple[list[int], list[Sample]]:
        """Places in the endless order, and their samples, until they hold so many tokens."""
        places, pool = list(waiting), self._samples(waiting)
        missing = num_tokens - sum(sample.num_tokens for sample in pool)
        while missing > 0:
            upcoming = list(range(taken, taken + missing // self._longest + 1))
            drawn = self._samples(upcoming)
            places, pool = places + upcoming, pool + drawn
            missing -= sum(sample.num_tokens for sample in drawn)
            taken = upcoming[-1] + 1
        return places, pool

    def _samples(self, places: list[int]) -> list[Sample]:
        """Place epoch x size + i is the i-th of that epoch's order; places come in rising order."""
        table, size = self._table, self._table.num_samples
        epochs, positions = np.divmod(np.array(places, dtype=np.int64), size)
        samples: list[Sample] = []
        for epoch in sorted({int(each) for each in epochs}):
            order = Permutation(size, self._seed, epoch, ALL_BUCKETS)
            ids, buckets = table.ids_and_buckets(order.take(positions[epochs == epoch]))
            samples += [
                use_of(table, int(each), epoch, int(bucket))
                for each, bucket in zip(ids, buckets, strict=True)
            ]
        return samples
