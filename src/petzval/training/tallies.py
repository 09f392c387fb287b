"""Means that can be put together: a sum and a count, from any number of steps and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_DECILES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Detached scalars: the sum of some values and how many they are. A mean is total / count."""

    total: Tensor
    count: Tensor


def tally_by_decile(values: Tensor, sigmas: Tensor, name: str = "loss_t") -> dict[str, Tally]:
    """Values by the tenth of [0, 1] that their noise level lies in.

    Args:
        values: [B], one a sample.
        sigmas: [B] in [0, 1]; 1 is pure noise.
        name: keys are `<name>0.0` … `<name>0.9`, all ten of them: nothing waits for a device.
    """
    values = values.detach().float()
    places = (sigmas.to(values.device) * NUM_DECILES).long().clamp(0, NUM_DECILES - 1)
    totals = torch.zeros(NUM_DECILES, device=values.device).index_add_(0, places, values)
    counts = torch.zeros_like(totals).index_add_(0, places, torch.ones_like(values))
    return {
        f"{name}{place / NUM_DECILES:.1f}": Tally(total=totals[place], count=counts[place])
        for place in range(NUM_DECILES)
    }


def tally_by_label(
    values: Tensor, labels: Sequence[str], name: str = "loss_bucket_"
) -> dict[str, Tally]:
    """Values [B] by a label of their sample, such as its bucket; keys are `<name><label>`."""
    values = values.detach().float()
    assert len(labels) == values.shape[0]
    tallies: dict[str, Tally] = {}
    for label in sorted(set(labels)):
        chosen = torch.tensor([own == label for own in labels], device=values.device)
        tallies[f"{name}{label}"] = Tally(total=(values * chosen).sum(), count=chosen.sum())
    return tallies


def add_tallies(parts: Iterable[Mapping[str, Tally]]) -> dict[str, Tally]:
    """Tallies added by name; a name may be missing anywhere."""
    sums: dict[str, Tally] = {}
    for part in parts:
        for name, tally in part.items():
            own = sums.get(name)
            sums[name] = (
                tally
                if own is None
                else Tally(total=own.total + tally.total, count=own.count + tally.count)
            )
    return sums


def add_sums(parts: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Element-wise sums by name; a name may be missing anywhere."""
    sums: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.items():
            own = sums.setdefault(name, [0.0] * len(values))
            for index, value in enumerate(values):
                own[index] += value
    return sums
