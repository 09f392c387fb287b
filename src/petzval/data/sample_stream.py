"""What a sampler gives and where it stands: samples, the batches of a step, a resumable state."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from petzval.config import from_mapping, to_mapping
from petzval.data.sample_table import SampleTable
from petzval.errors import ConfigError, TrainingError


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerState:
    """Where a stream of samples stands: below 1 kB of JSON, the same on all ranks.

    Attributes:
        stream: fingerprint of corpus and settings; another stream is refused.
        step: global steps done.
        taken: samples taken since the beginning, of each bucket; one number in packed mode.
        waiting: packed mode: looked at, not yet used; how far each lies behind the last taken.
    """

    stream: str
    step: int
    taken: tuple[int, ...]
    waiting: tuple[int, ...] = ()

    def to_json(self) -> str:
        """One line; `from_json` reads it."""
        return json.dumps(to_mapping(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SamplerState:
        """The state that `to_json` wrote.

        Raises:
            TrainingError: it is no such line.
        """
        try:
            return from_mapping(cls, json.loads(text), where="sampler state")
        except (json.JSONDecodeError, ConfigError) as error:
            raise TrainingError(
                f"the sampler's state cannot be read: {error}",
                "resume from another checkpoint of the run",
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One use of one sample. `(seed, id, epoch)` is the key of its noise; see `randomness`."""

    id: int
    epoch: int
    bucket: int
    image_tokens: int
    text_tokens: int

    @property
    def num_tokens(self) -> int:
        """Image and text."""
        return self.image_tokens + self.text_tokens


RankBatch: TypeAlias = tuple[Sample, ...]
"""What one virtual rank learns from in one step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalStep:
    """The batches of all virtual ranks, in their order."""

    number: int
    batches: tuple[RankBatch, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples in their global order."""
        return tuple(sample for batch in self.batches for sample in batch)

    def of_rank(self, rank: int, world_size: int) -> tuple[RankBatch, ...]:
        """The batches that one physical rank runs, one after the other.

        Raises:
            ConfigError: the world size does not divide the number of virtual ranks, so that ranks
                would run different numbers of batches and wait for each other for ever.
        """
        count = len(self.batches)
        if world_size < 1 or count % world_size:
            fitting = ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
            raise ConfigError(
                f"{count} virtual ranks cannot be shared by {world_size} processes alike",
                f"start {fitting} processes, or begin a run with another num_virtual_ranks",
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes")
        return self.batches[rank::world_size]


@runtime_checkable
class Sampler(Protocol):
    """A stream of global steps."""

    def start(self) -> SamplerState:
        """The state before the first step."""
        ...

    def draw(self, state: SamplerState) -> tuple[GlobalStep, SamplerState]:
        """The step that follows a state, and the state after it.

        Raises:
            TrainingError: the state belongs to another corpus or to other settings.
        """
        ...


def use_of(table: SampleTable, number: int, epoch: int, bucket: int) -> Sample:
    """The use of sample `number`, with what the table says of it."""
    return Sample(
        id=number,
        epoch=epoch,
        bucket=bucket,
        image_tokens=table.image_tokens[bucket],
        text_tokens=int(table.text_tokens[number]),
    )


def fingerprint(table: SampleTable, mode: Any, seed: int, num_virtual_ranks: int) -> str:
    """Twelve digits for all that decides a stream, as far as a glance at the corpus tells."""
    corpus = (table.counts, table.image_tokens, int(table.text_tokens.sum(dtype=np.int64)))
    settings = (type(mode).__name__, to_mapping(mode), seed, num_virtual_ranks)
    text = json.dumps((corpus, settings), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def check_stream(state: SamplerState, stream: str) -> None:
    """Refuse a state that another stream left.

    Raises:
        TrainingError: the fingerprints differ.
    """
    if state.stream != stream:
        raise TrainingError(
            "the sampler's state belongs to another corpus or to other settings",
            "resume with the corpus, seed, mode and virtual ranks that the run began with",
        )
