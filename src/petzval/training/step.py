"""One optimizer step: forward, backward, clip, update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.training.objective import BatchT, Objective
from petzval.training.state import RunState


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step measured.

    Attributes:
        loss: the objective's value.
        parts: the objective's named scalars.
        grad_norm: global norm before clipping.
        skipped: True if the spike guard refused the update.
    """

    loss: float
    parts: Mapping[str, float]
    grad_norm: float
    skipped: bool
    num_items: int
    num_tokens: int


def training_step(
    objective: Objective[BatchT],
    batch: BatchT,
    state: RunState,
    *,
    max_grad_norm: float,
    autocast: torch.dtype | None = None,
) -> StepReport:
    """Advance the state by one step.

    Args:
        objective: gives the loss.
        batch: from `objective.batch(state.step)`.
        state: changed in place; `state.step` grows by one also when the update is refused.
        max_grad_norm: gradients are scaled down to this global norm.
        autocast: type of the matrix products; parameters and updates stay float32.
    """
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    device = parameters[0].device.type
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        loss = objective.loss(batch)
    loss.value.backward()  # pyright: ignore[reportUnknownMemberType]
    grad_norm = float(_clip(parameters, max_grad_norm))
    accepted = state.guard.accepts(grad_norm)
    if accepted:
        for optimizer in state.optimizers:
            optimizer.step()
        if state.ema is not None:
            state.ema.update(state.model)
    state.step += 1
    state.num_items += loss.num_items
    state.num_tokens += loss.num_tokens
    return StepReport(
        loss=float(loss.value.detach()),
        parts={name: float(value.detach()) for name, value in loss.parts.items()},
        grad_norm=grad_norm,
        skipped=not accepted,
        num_items=loss.num_items,
        num_tokens=loss.num_tokens,
    )


def _clip(parameters: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    return torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm, foreach=True)
