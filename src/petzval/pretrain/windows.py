"""Batches of like lengths without waste, as a pure function of the step.

A window is a fixed number of steps. Its samples are sorted by length and cut into batches, and the
batches are put in random order: every sample is used once, and little is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

SampleT = TypeVar("SampleT")


class SortedWindows(Generic[SampleT]):
    """Batches of like lengths.

    Args:
        make: window number → its samples, `batch_size * steps_per_window` of them.
        length: of a sample, in tokens.
        batch_size: samples a step.
        steps_per_window: batches a window.
        seed: orders the batches of a window.
    """

    def __init__(
        self,
        make: Callable[[int], Sequence[SampleT]],
        length: Callable[[SampleT], int],
        *,
        batch_size: int,
        steps_per_window: int,
        seed: int,
    ) -> None:
        self._make = make
        self._length = length
        self._batch_size = batch_size
        self._steps = steps_per_window
        self._seed = seed
        self._number = -1
        self._batches: list[list[SampleT]] = []

    def batch(self, step: int) -> list[SampleT]:
        """The samples of one step."""
        number, position = divmod(step, self._steps)
        if number != self._number:
            samples = sorted(self._make(number), key=self._length)
            assert len(samples) == self._batch_size * self._steps
            cuts = range(0, len(samples), self._batch_size)
            batches = [samples[cut : cut + self._batch_size] for cut in cuts]
            order = np.random.default_rng((self._seed, number)).permutation(len(batches))
            self._batches = [batches[place] for place in order]
            self._number = number
        return self._batches[position]


def pad(rows: Sequence[Sequence[int]], fill: int, *, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of ids, padded on the right → ids [B, T] and mask [B, T], True where real.

    Args:
        rows: of any lengths, also none.
        fill: id of the padding.
        multiple: T is rounded up to one of it: fewer shapes, for each of which kernels are made.
    """
    width = -(-max(len(row) for row in rows) // multiple) * multiple
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, : len(row)] = True
    return ids, mask
