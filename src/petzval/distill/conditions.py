"""What a denoiser is told beside the noisy tokens, and a denoiser as a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from petzval.models.mmdit import MMDiT
from petzval.pretrain.denoiser import DenoiserBatch
from petzval.training.parallel import Shell
from petzval.training.state import evaluate, within

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Of a batch of one bucket.

    Attributes:
        features: [B, T, width] of each selected layer of the text encoder; none without text.
        mask: [B, T], True where real; None where nothing is padded.
        grid: rows and columns of tokens.
    """

    features: tuple[Tensor, ...]
    mask: Tensor | None
    grid: tuple[int, int]

    @classmethod
    def of(cls, batch: DenoiserBatch) -> Conditions:
        """Those of a prepared batch."""
        features = batch.features
        if not features:
            return cls(features=(), mask=None, grid=batch.grid)
        mask = None if bool(batch.mask.all()) else batch.mask.to(features[0].device)
        return cls(features=features, mask=mask, grid=batch.grid)

    def without_text(self) -> Conditions:
        """The unconditional branch: no text tokens at all."""
        return dataclasses.replace(self, features=(), mask=None)


Velocity = Callable[[Tensor, Tensor, Conditions], Tensor]
"""(tokens [B, S, C], sigma [B], conditions) → velocity [B, S, C] in float32."""

Features = Callable[[Tensor, Tensor, Conditions], list[Tensor]]
"""(tokens [B, S, C], sigma [B], conditions) → hidden states [B, S, width], one a block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A denoiser, and the root of its shards where it has some.

    Attributes:
        velocity: for the network's own update, within which its parameters are at hand.
    """

    velocity: Velocity
    root: Shell | None = None

    def frozen(self, tokens: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
        """The velocity in another network's update, without gradients."""
        return evaluate(self.root, lambda: self.velocity(tokens, sigmas, conditions))

    def passed(self, call: Callable[[], ResultT]) -> ResultT:
        """`call()`, which runs the frozen network and keeps the gradient of its input."""
        return within(self.root, call)


def denoiser_velocity(model: MMDiT) -> Velocity:
    """A denoiser as a function."""

    def velocity(tokens: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
        told = conditions.features
        return model.velocity(tokens, told, sigmas, conditions.grid, conditions.mask).float()

    return velocity
