"""Every sample once, like lengths together, the same for every step asked in any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from petzval.pretrain.windows import SortedWindows, pad


def make(number: int) -> Sequence[int]:
    return [(17 * place + 5 * number) % 29 + 100 * number for place in range(12)]


def windows() -> SortedWindows[int]:
    return SortedWindows(make, lambda x: x % 100, batch_size=3, steps_per_window=4, seed=1)


def test_a_window_uses_every_sample_once_and_sorts_them() -> None:
    batches = [windows().batch(step) for step in range(4, 8)]
    assert sorted(sum(batches, [])) == sorted(make(1))
    ranges = sorted((min(batch), max(batch)) for batch in batches)
    assert all(left[1] <= right[0] for left, right in zip(ranges, ranges[1:], strict=False))


def test_batches_depend_on_the_step_alone() -> None:
    forward, backward = windows(), windows()
    expected = {step: forward.batch(step) for step in range(12)}
    assert {step: backward.batch(step) for step in reversed(range(12))} == expected


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = pad([[1, 2, 3], [], [4]], fill=9)
    assert torch.equal(ids, torch.tensor([[1, 2, 3], [9, 9, 9], [4, 9, 9]]))
    assert mask.sum(1).tolist() == [3, 0, 1]
    assert pad([[], []], fill=9)[0].shape == (2, 0)
