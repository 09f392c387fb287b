"""What a stage must offer to be trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

BatchT = TypeVar("BatchT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What an objective says about one batch.

    Attributes:
        value: scalar, differentiable; the mean over the batch.
        parts: named detached scalars for the log.
        num_items: images or sequences in the batch.
        num_tokens: tokens that carried a gradient.
    """

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    num_items: int = 0
    num_tokens: int = 0


@runtime_checkable
class Objective(Protocol[BatchT]):
    """A source of batches and the loss on them.

    `batch` must be a pure function of the step: all randomness (data order, noise, dropout) is
    drawn there or from a seed carried by the batch, never from a global generator.
    """

    def batch(self, step: int) -> BatchT:
        """What step number `step` learns from."""
        ...

    def loss(self, batch: BatchT) -> Loss:
        """The value to minimise on a batch, with its gradient."""
        ...
