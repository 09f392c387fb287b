"""An exponential moving average of a model's parameters, the weights that are published."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages in float32 beside the model.

    The decay rises with the number of updates n as min(decay, (1 + n) / (10 + n)), so that a short
    run is not held back by its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        assert 0 <= decay < 1
        self.decay = decay
        self.num_updates = 0
        self.averages: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in model.named_parameters()
        }

    def current_decay(self) -> float:
        """The decay that the next update uses."""
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average <- decay * average + (1 - decay) * parameter."""
        weight = 1 - self.current_decay()
        parameters = dict(model.named_parameters())
        for name, average in self.averages.items():
            average.lerp_(parameters[name].detach().float(), weight)
        self.num_updates += 1

    @contextmanager
    def applied_to(self, model: nn.Module) -> Generator[None]:
        """The model carries the averages inside the block, its own parameters after it."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        copy_parameters(model, self.averages)
        try:
            yield
        finally:
            copy_parameters(model, own)


@torch.no_grad()
def copy_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Overwrite the model's parameters; names must be the model's own, all of them."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == values.keys(), "averages and model differ in names"
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
