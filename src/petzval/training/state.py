"""Everything a run is made of at one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

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


@dataclass(kw_only=True, slots=True)
class RunState:
    """Model, averages, optimizers and counters; what a checkpoint holds.

    Attributes:
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

    def within(self, call: Callable[[], ResultT]) -> ResultT:
        """`call()`, which runs the model and returns the tensors to go backward from."""
        return call() if self.root is None else self.root(call)

    def evaluate(self, call: Callable[[], ResultT]) -> ResultT:
        """`call()`, which runs the model without gradients. All ranks must call it alike."""
        with torch.no_grad():
            if self.root is None:
                return call()
            try:
                return self.root(call)
            finally:
                cast("FSDPModule", self.root).reshard()
