"""Random numbers that are addressed, not drawn in turn: the same key always gives the same numbers.

A key is a purpose and some integers. What a sample learns from (its noise, its noise level, whether
it loses its text) is keyed by (seed, sample, epoch), so that neither packing nor world size nor the
number of workers can change it. Philox is counter-based (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"); its key of 128 bits is a hash, so keys that look alike are unrelated.

`torch.Generator` does not serve here: on a CPU it keeps 32 bits of its seed, and a corpus has
hundreds of millions of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

SamplePurpose: TypeAlias = Literal["noise", "noise level", "text dropout", "augmentation"]
"""What a sample's numbers are for. Each purpose has a stream of its own: drawing more numbers for
one moves none of the others."""


def bit_generator(purpose: str, *numbers: int) -> np.random.Philox:
    """The stream that belongs to a purpose and some integers of any size or sign."""
    text = ":".join((purpose, *(str(int(number)) for number in numbers)))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))


def raw_numbers(count: int, purpose: str, *numbers: int) -> list[int]:
    """The first `count` numbers of a stream, each uniform on 0 … 2^64 - 1."""
    return [int(number) for number in bit_generator(purpose, *numbers).random_raw(count)]


def sample_generator(
    seed: int, sample: int, epoch: int, purpose: SamplePurpose
) -> np.random.Generator:
    """A generator that belongs to one sample in one epoch.

    Args:
        seed: of the run.
        sample: the sample's id in the corpus.
        epoch: a sample meets other noise each time round.
        purpose: see `SamplePurpose`.
    """
    return np.random.Generator(bit_generator(purpose, seed, sample, epoch))


def sample_uniforms(
    seed: int, samples: Sequence[int], epochs: Sequence[int], purpose: SamplePurpose
) -> NDArray[np.float64]:
    """One number in [0, 1) a sample, for noise levels and dropout; 53 random bits each."""
    raw = [
        raw_numbers(1, purpose, seed, sample, epoch)[0] >> 11
        for sample, epoch in zip(samples, epochs, strict=True)
    ]
    return np.array(raw, dtype=np.float64) * 2.0**-53
