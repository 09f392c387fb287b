"""Which samples each rank learns from in each step: mixed resolutions, the same on any machine.

A global step consists of `num_virtual_ranks` batches, whatever machine runs it. Physical rank p of
W takes the batches r with r mod W = p and accumulates their gradients, so the world size may change
between runs and every step still consumes the same samples in the same order. What a step holds is
a pure function of the settings and a small `SamplerState`, which is the same on all ranks.

Two modes: `bucket_sampler`, where each virtual rank draws one size of picture as the Lens paper
does, and `packed_sampler`, where samples of any size share a rank at equal cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from petzval.config import check_ranges, setting
from petzval.data.bucket_sampler import BucketMode, BucketSampler
from petzval.data.packed_sampler import PackedMode, PackedSampler
from petzval.data.sample_stream import GlobalStep, Sampler, SamplerState
from petzval.data.sample_table import SampleTable

Mode: TypeAlias = Literal["bucket", "packed"]
MODES: tuple[Mode, ...] = ("bucket", "packed")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """Settings of the sampler; they decide the stream of samples.

    Attributes:
        seed: of all orders and draws.
        num_virtual_ranks: batches of a global step. World sizes that divide it can run it.
        mode: how a batch is made; the settings of the other mode are not looked at.
        bucket, packed: settings of each mode.
    """

    seed: int = 0
    num_virtual_ranks: int = setting(8, minimum=1)
    mode: Mode = "bucket"
    bucket: BucketMode = BucketMode()
    packed: PackedMode = PackedMode()

    def __post_init__(self) -> None:
        check_ranges(self, where="sampler")


def build_sampler(table: SampleTable, config: SamplerConfig) -> Sampler:
    """The sampler of a corpus in the mode that the settings name.

    Raises:
        ConfigError: batch sizes or shares that do not fit the corpus.
        DataError: a sample that no budget holds.
    """
    seed, num_virtual_ranks = config.seed, config.num_virtual_ranks
    if config.mode == "bucket":
        return BucketSampler(table, config.bucket, seed=seed, num_virtual_ranks=num_virtual_ranks)
    return PackedSampler(table, config.packed, seed=seed, num_virtual_ranks=num_virtual_ranks)


class SampleSteps:
    """The steps of a sampler by their number, from the state where a process began.

    Asked for in rising order, a step costs one draw. Worker processes each walk the same way.

    Args:
        sampler: draws the steps.
        state: where to begin; the sampler's start if None.

    Raises:
        TrainingError: the state belongs to another corpus or to other settings.
    """

    def __init__(self, sampler: Sampler, state: SamplerState | None = None) -> None:
        self._sampler = sampler
        self._begin = sampler.start() if state is None else state
        self._step, self._after = sampler.draw(self._begin)

    def at(self, number: int) -> tuple[GlobalStep, SamplerState]:
        """Step `number`, and the state to save after it.

        Raises:
            ValueError: it lies before the state that this began with.
        """
        if number < self._begin.step:
            raise ValueError(f"step {number} lies before step {self._begin.step}, where this began")
        if number < self._step.number:
            self._step, self._after = self._sampler.draw(self._begin)
        while self._step.number < number:
            self._step, self._after = self._sampler.draw(self._after)
        return self._step, self._after


def steps(sampler: Sampler, state: SamplerState) -> Iterator[tuple[GlobalStep, SamplerState]]:
    """Steps without end, each with the state to save after it."""
    while True:
        step, state = sampler.draw(state)
        yield step, state
