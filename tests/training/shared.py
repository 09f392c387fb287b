"""A regression whose global batch is dealt out to the ranks, in unequal parts if asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petzval.training.ema import Ema
from petzval.training.loop import LoopConfig
from petzval.training.metrics import read_metrics
from petzval.training.objective import Loss
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.parallel import Layout, ParallelConfig, parallelize
from petzval.training.ranks import Ranks
from petzval.training.state import RunState, SpikeGuard
from petzval.training.tallies import tally_by_decile, tally_by_label
from petzval.training.weighting import Weighting

LAYOUT = Layout(blocks=("0", "2"))
NUM_SAMPLES = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Inputs and targets [B, 4], tokens [B], noise levels [B], and whose each is [B]."""

    inputs: Tensor
    targets: Tensor
    tokens: Tensor
    sigmas: Tensor
    owners: Tensor


def deal(step: int, sizes: Sequence[int]) -> Samples:
    """The global batch of a step: the first `sizes[0]` samples are rank 0's, and so on.

    Later ranks have larger samples, as with 24 small pictures here and 6 large ones there.
    """
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(NUM_SAMPLES, 4, generator=generator)
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    count = owners.shape[0]
    return Samples(
        inputs=inputs[:count],
        targets=inputs[:count].flip(-1) * 2,
        tokens=(owners + 1) ** 2,
        sigmas=torch.rand(NUM_SAMPLES, generator=generator)[:count],
        owners=owners,
    )


class SharedObjective:
    """Each rank's part of the global batch; parts of single steps can be spoilt.

    Args:
        sizes: samples of each rank.
        spoilt: step → factor on the last rank's targets (nan poisons them).
        by_item: whether the loss of each sample is given.
    """

    def __init__(
        self,
        model: nn.Module,
        rank: int,
        sizes: Sequence[int],
        *,
        spoilt: Mapping[int, float] | None = None,
        by_item: bool = False,
    ) -> None:
        self.model, self.rank, self.sizes = model, rank, sizes
        self.spoilt = spoilt or {}
        self.by_item = by_item
        self.origin: dict[str, Any] = {"seed": 7}

    def batch(self, step: int) -> Samples:
        samples = spoil(deal(step, self.sizes), self.spoilt.get(step, 1.0))
        own = samples.owners == self.rank
        return Samples(**{name: getattr(samples, name)[own] for name in Samples.__slots__})

    def loss(self, batch: Samples) -> Loss:
        items = item_losses(self.model, batch)
        return Loss(
            value=items.mean(),
            parts={"rank": torch.tensor(float(self.rank))},
            num_items=items.shape[0],
            num_tokens=int(batch.tokens.sum()),
            items=items if self.by_item else None,
            item_tokens=batch.tokens if self.by_item else None,
            means={
                **tally_by_decile(items, batch.sigmas),
                **tally_by_label(items, [f"of_{int(owner)}" for owner in batch.owners]),
            },
            flops=1e6 * items.shape[0],
        )

    def state_dict(self) -> dict[str, Any]:
        return self.origin

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.origin = {**state, "loaded": True}


class WholeObjective:
    """The same in one process: the global batch, and the loss that the weighting's words say."""

    def __init__(
        self,
        model: nn.Module,
        sizes: Sequence[int],
        weighting: Weighting,
        spoilt: Mapping[int, float] | None = None,
    ) -> None:
        self.model, self.sizes, self.weighting = model, sizes, weighting
        self.spoilt = spoilt or {}

    def batch(self, step: int) -> Samples:
        return spoil(deal(step, self.sizes), self.spoilt.get(step, 1.0))

    def loss(self, batch: Samples) -> Loss:
        items = item_losses(self.model, batch)
        if self.weighting == "sample":
            value = items.mean()
        elif self.weighting == "token":
            value = (items * batch.tokens).sum() / batch.tokens.sum()
        else:
            ranks = range(len(self.sizes))
            value = torch.stack([items[batch.owners == rank].mean() for rank in ranks]).mean()
        return Loss(value=value, num_items=items.shape[0], num_tokens=int(batch.tokens.sum()))


def spoil(samples: Samples, factor: float) -> Samples:
    """The last rank's targets times a factor."""
    last = samples.owners == samples.owners.max()
    targets = torch.where(last[:, None], samples.targets * factor, samples.targets)
    return Samples(
        inputs=samples.inputs,
        targets=targets,
        tokens=samples.tokens,
        sigmas=samples.sigmas,
        owners=samples.owners,
    )


def item_losses(model: nn.Module, samples: Samples) -> Tensor:
    """[B]"""
    return (model(samples.inputs) - samples.targets).square().mean(dim=1)


def small_model() -> nn.Module:
    """Six hidden units: four ranks hold two rows each, and the last one none."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))


def adamw() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=0.01, warmup_steps=0)


def muon() -> OptimizerConfig:
    return OptimizerConfig(kind="muon", learning_rate=0.01, warmup_steps=0, newton_schulz="float32")


def small_state(
    config: OptimizerConfig, ranks: Ranks | None = None, *, replicate: int = 1
) -> RunState:
    ranks = ranks or Ranks()
    model = small_model()
    root = parallelize(model, ParallelConfig(replicate=replicate), ranks, LAYOUT)
    return RunState(
        model=model,
        optimizers=build_optimizers(model, config),
        ema=Ema(model, 0.9),
        guard=SpikeGuard(factor=5.0, warmup=5),
        config_hash="abc",
        ranks=ranks,
        root=root,
    )


def even(size: int) -> list[int]:
    """The global batch in equal parts."""
    return [NUM_SAMPLES // size] * size


def loop(num_steps: int, milestone_steps: int | None = None) -> LoopConfig:
    return LoopConfig(
        optimizer=muon(),
        num_steps=num_steps,
        log_every=1,
        keep=1,
        milestone_steps=milestone_steps,
        peak_flops=1e9,
    )


def losses_of(folder: Path) -> list[float]:
    """The loss of every step of a run, from its log."""
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
