"""A regression small enough for bit-exact comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from petzval.training.ema import Ema
from petzval.training.objective import Loss
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.state import RunState


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Inputs and targets [16, 4]."""

    inputs: Tensor
    targets: Tensor


class LinearObjective:
    """Find a fixed linear map; one batch can be poisoned."""

    def __init__(self, model: nn.Module, poisoned: int = -1) -> None:
        self.model = model
        self.poisoned = poisoned

    def batch(self, step: int) -> Pairs:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 4, generator=generator)
        if step == self.poisoned:
            inputs = inputs * float("nan")
        return Pairs(inputs=inputs, targets=inputs.flip(-1))

    def loss(self, batch: Pairs) -> Loss:
        error = (self.model(batch.inputs) - batch.targets).square().mean()
        return Loss(value=error, parts={"error": error}, num_items=16, num_tokens=64)


def toy_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def toy_state(config: OptimizerConfig) -> RunState:
    model = toy_model()
    return RunState(model=model, optimizers=build_optimizers(model, config), ema=Ema(model, 0.9))


def same_state(left: RunState, right: RunState) -> bool:
    """Weights, averages and counters, bit for bit."""
    assert left.ema is not None and right.ema is not None
    weights = zip(
        [*left.model.state_dict().values(), *left.ema.averages.values()],
        [*right.model.state_dict().values(), *right.ema.averages.values()],
        strict=True,
    )
    counters = left.step == right.step and left.guard == right.guard
    return counters and all(torch.equal(a, b) for a, b in weights)
