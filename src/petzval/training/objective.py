"""What a stage must offer to be trained, and what it may."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from petzval.training.tallies import Tally

BatchT = TypeVar("BatchT")
BatchInT = TypeVar("BatchInT", contravariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What an objective says about one batch.

    Attributes:
        value: scalar, differentiable; the mean over the batch.
        parts: named detached scalars for the log; their mean over steps and ranks is shown.
        num_items: images or sequences in the batch.
        num_tokens: tokens that carried a gradient.
        items: [num_items] differentiable loss of each item, where the items differ in size; then
            `value` is any mean of them and the other weightings are exact (`weighting.py`).
        item_tokens: [num_items] tokens of each item.
        means: named sums and counts for the log, such as the loss by bucket and by noise level;
            sums and counts are added over steps and ranks, then divided.
        flops: floating-point operations of forward and backward on this batch; None if unknown.
        idle: patterns (as in `parallel.Layout`) of parameters that no rank's share of this step
            reaches; every rank says the same, or says nothing.
    """

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    num_items: int = 0
    num_tokens: int = 0
    items: Tensor | None = None
    item_tokens: Tensor | None = None
    means: Mapping[str, Tally] = field(default_factory=dict[str, Tally])
    flops: float | None = None
    idle: tuple[str, ...] = ()


@runtime_checkable
class Objective(Protocol[BatchT]):
    """A source of batches and the loss on them.

    `batch` must be a pure function of the step: all randomness (data order, noise, dropout) is
    drawn there or from a seed carried by the batch, never from a global generator. In a run of
    several processes each has its own objective, which knows its rank: what `batch` gives is this
    rank's share of the step.
    """

    def batch(self, step: int, /) -> BatchT:
        """What step number `step` learns from; of an `Accumulating` one, batch number `step`."""
        ...

    def loss(self, batch: BatchT) -> Loss:
        """The value to minimise on a batch, with its gradient."""
        ...


@runtime_checkable
class Accumulating(Protocol):
    """An objective whose step is several batches, one after the other in one process.

    `batch(n)` is then batch `n % batches_per_step` of step `n // batches_per_step`. Their gradients
    are added as those of as many ranks would be, and only one of them is in memory at a time.
    """

    @property
    def batches_per_step(self) -> int:
        """Batches of this process in each step, at least 1; the same number on all ranks."""
        ...


@runtime_checkable
class Windowed(Protocol):
    """An objective that draws several batches at once: those of a window belong to one maker.

    Batches n with the same `n // batches_per_window` are one window.
    """

    @property
    def batches_per_window(self) -> int:
        """Batches that are drawn together, at least 1."""
        ...


@runtime_checkable
class Preparing(Protocol[BatchT]):
    """An objective with frozen networks, whose work on a batch can be done one step ahead."""

    def prepare(self, batch: BatchT) -> BatchT:
        """The batch with what frozen networks add to it; called once, under no_grad."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One update within a step.

    Attributes:
        part: whose parameters change: a name of `RunState.others`, or "" for the model itself.
        loss: what that part minimises; called once, with the part's parameters at hand.
    """

    part: str
    loss: Callable[[], Loss]


@runtime_checkable
class Alternating(Protocol[BatchInT]):
    """An objective whose step is several updates in turn, of several networks.

    Each has its own loss, gradient norm, spike guard and optimizers; `Objective.loss` is not used.
    The step's own numbers (loss, norm, whether it was refused) are those of the model's last
    update, the others are logged under their part's name.
    """

    def phases(self, batch: BatchInT) -> Iterable[Phase]:
        """The updates in order; the next one is asked for when the one before is done."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An objective whose `batch` depends on more than its settings and the step.

    What is kept must be the same on all ranks, JSON, and small (a sampler's: under 1 kB): the first
    rank's is written, and all ranks read it, however many they are by then.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """What a later process needs, besides the step, to go on with the same samples."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...
