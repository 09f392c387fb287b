"""Everything a run is made of at one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from petzval.training.ema import Ema
from petzval.training.parallel import Shell
from petzval.training.ranks import Ranks

ResultT = TypeVar("ResultT")


@dataclass(kw_only=True, slots=True)
class SpikeGuard:
    """Decides whether a gradient is taken: not if it is non-finite or far above the usual norm.

    Attributes:
        factor: a norm above `factor` times the average is a spike.
        decay: of the average norm.
        warmup: updates before spikes are looked for.
        average: moving average of accepted norms.
        num_accepted: updates taken.
        num_skipped: updates refused.
        num_in_a_row: refused since the last taken one; after `patience` the average is forgotten,
            since the norm has then moved for good.
    """

    factor: float = 5.0
    decay: float = 0.98
    warmup: int = 50
    patience: int = 20
    average: float = 0.0
    num_accepted: int = 0
    num_skipped: int = 0
    num_in_a_row: int = 0

    def accepts(self, grad_norm: float) -> bool:
        """True if the update may be taken; keeps the counts and the average."""
        finite = grad_norm == grad_norm and grad_norm not in (float("inf"), float("-inf"))
        spike = self.num_accepted >= self.warmup and grad_norm > self.factor * self.average
        if finite and spike and self.num_in_a_row >= self.patience:
            self.average, spike = grad_norm, False
        if not finite or spike:
            self.num_skipped += 1
            self.num_in_a_row += 1
            return False
        weight = 1 - min(self.decay, (1 + self.num_accepted) / (10 + self.num_accepted))
        self.average += weight * (grad_norm - self.average)
        self.num_accepted += 1
        self.num_in_a_row = 0
        return True


@runtime_checkable
class Trained(Protocol):
    """A network that learns, with all that its updates need: a run's model, or a further part."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    ema: Ema | None
    guard: SpikeGuard
    root: Shell | None


@dataclass(kw_only=True, slots=True)
class Part:
    """A further network that a run trains beside its model, such as the critic of a generator.

    Attributes:
        rate_factor: its learning rate, as a multiple of the model's.
        root: the shell of a sharded network; not stored.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    ema: Ema | None = None
    guard: SpikeGuard = field(default_factory=SpikeGuard)
    rate_factor: float = 1.0
    root: Shell | None = None

    def within(self, call: Callable[[], ResultT]) -> ResultT:
        """As `RunState.within`, of this network."""
        return within(self.root, call)

    def evaluate(self, call: Callable[[], ResultT]) -> ResultT:
        """As `RunState.evaluate`, of this network."""
        return evaluate(self.root, call)


@dataclass(kw_only=True, slots=True)
class RunState:
    """Model, averages, optimizers and counters; what a checkpoint holds.

    Attributes:
        others: further networks by name, trained beside the model (`objective.Alternating`).
        step: finished steps, skipped updates included.
        seconds: time spent in steps over all sessions of the run.
        num_items: images or sequences seen, by all ranks.
        num_tokens: tokens seen, by all ranks.
        config_hash: of the settings that the run was started with; "" if nobody asks.
        ranks: the processes of the run; not stored.
        root: the shell of a sharded model (`parallel.parallelize`); not stored.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    ema: Ema | None = None
    guard: SpikeGuard = field(default_factory=SpikeGuard)
    step: int = 0
    seconds: float = 0.0
    num_items: int = 0
    num_tokens: int = 0
    config_hash: str = ""
    ranks: Ranks = field(default_factory=Ranks)
    root: Shell | None = None
    others: dict[str, Part] = field(default_factory=dict[str, Part])

    def part(self, name: str) -> Trained:
        """One of `others` by name, or the run's own model as ""."""
        return self.others[name] if name else self

    def parts(self) -> Iterator[tuple[str, Trained]]:
        """The model as "", then the others with their names and a dot: prefixes of what is kept."""
        yield "", self
        for name, part in self.others.items():
            yield f"{name}.", part

    def within(self, call: Callable[[], ResultT]) -> ResultT:
        """`call()`, which runs the model and returns the tensors to go backward from."""
        return within(self.root, call)

    def evaluate(self, call: Callable[[], ResultT]) -> ResultT:
        """`call()`, which runs the model without gradients. All ranks must call it alike."""
        return evaluate(self.root, call)


def within(root: Shell | None, call: Callable[[], ResultT]) -> ResultT:
    """`call()` with a root's parameters at hand, where there is one."""
    return call() if root is None else root(call)


def evaluate(root: Shell | None, call: Callable[[], ResultT]) -> ResultT:
    """`call()` without gradients; a root's parameters are let go after it."""
    with torch.no_grad():
        if root is None:
            return call()
        try:
            return root(call)
        finally:
            cast("FSDPModule", root).reshard()
