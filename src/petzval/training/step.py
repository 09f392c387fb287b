"""One optimizer step: forward, backward, clip, update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from petzval.training.objective import BatchT, Loss, Objective
from petzval.training.parallel import full_tensor
from petzval.training.state import RunState
from petzval.training.tallies import add_tallies
from petzval.training.weighting import Weighting, weighted


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step measured.

    Attributes:
        loss: the value that was minimised, over all ranks.
        parts: this rank's named scalars.
        sums: this rank's (total, count) by name.
        grad_norm: global norm before clipping.
        skipped: True if the spike guard refused the update.
        num_items: of all ranks.
        num_tokens: of all ranks.
        flops: of all ranks; None where the objective does not say.
    """

    loss: float
    parts: Mapping[str, float]
    grad_norm: float
    skipped: bool
    num_items: int
    num_tokens: int
    sums: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    flops: float | None = None


def training_step(
    objective: Objective[BatchT],
    batch: BatchT,
    state: RunState,
    *,
    max_grad_norm: float,
    autocast: torch.dtype | None = None,
    weighting: Weighting = "rank",
    more: Iterable[BatchT] = (),
) -> StepReport:
    """Advance the state by one step; all ranks together, and all alike.

    Args:
        objective: gives the loss.
        batch: from `objective.batch(state.step)`.
        state: changed in place; `state.step` grows by one also when the update is refused.
        max_grad_norm: gradients are scaled down to this global norm.
        autocast: type of the matrix products; parameters and updates stay float32.
        weighting: what this rank's batch weighs among the others'.
        more: further batches of this step, as many on every rank. Each is taken when the one before
            is done; together they weigh as the batches of as many more ranks would.
    """
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    losses, minimised = _backward(objective, chain((batch,), more), state, autocast, weighting)
    # Every rank acts on one and the same number, whatever their own last bits are.
    grad_norm = state.ranks.of_first(float(_clip(parameters, max_grad_norm)))
    accepted = state.guard.accepts(grad_norm)
    if accepted:
        for optimizer in state.optimizers:
            optimizer.step()
        if state.ema is not None:
            state.ema.update(state.model)
    return _report(_joined(losses), minimised, grad_norm, accepted, state)


def _backward(
    objective: Objective[BatchT],
    batches: Iterable[BatchT],
    state: RunState,
    autocast: torch.dtype | None,
    weighting: Weighting,
) -> tuple[list[Loss], Tensor]:
    """Add up the gradients of a step's batches; what each lost, and the value that was minimised.

    A batch's weight among the others is known when all have run. Until then gradients are in units
    of the first one's weight.
    """
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    device = parameters[0].device.type
    losses: list[Loss] = []
    weights: list[float] = []
    values: list[Tensor] = []
    for batch in batches:

        def value(batch: BatchT = batch) -> Tensor:
            with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
                losses.append(objective.loss(batch))
            own, weight = weighted(losses[-1], weighting, state.ranks)
            weights.append(weight)
            return own if len(weights) == 1 else own * (weight / weights[0])

        minimised = state.within(value)
        minimised.backward()  # pyright: ignore[reportUnknownMemberType]
        values.append(minimised.detach())
    if state.root is not None:
        idle = (each for each in losses[0].idle if all(each in loss.idle for loss in losses))
        state.root.drop_idle_gradients(tuple(idle))
    if len(weights) == 1:
        return losses, values[0]
    share = weights[0] / sum(weights)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(share)
    return losses, torch.stack(values).sum() * share


def _joined(losses: Sequence[Loss]) -> Loss:
    """What a step's batches say together, for the log."""
    if len(losses) == 1:
        return losses[0]
    flops = [loss.flops for loss in losses]
    return Loss(
        value=losses[0].value.detach(),
        parts={
            name: torch.stack([loss.parts[name].detach() for loss in losses]).mean()
            for name in losses[0].parts
        },
        num_items=sum(loss.num_items for loss in losses),
        num_tokens=sum(loss.num_tokens for loss in losses),
        means=add_tallies([loss.means for loss in losses]),
        flops=None if None in flops else sum(number or 0.0 for number in flops),
    )


def _report(
    loss: Loss, minimised: Tensor, grad_norm: float, accepted: bool, state: RunState
) -> StepReport:
    """Count the step, and put together what the ranks saw."""
    values = _floats(
        [minimised, *loss.parts.values()]
        + [number for tally in loss.means.values() for number in (tally.total, tally.count)]
    )
    num_parts = len(loss.parts)
    sums = values[1 + num_parts :]
    own = (values[0], loss.num_items, loss.num_tokens, loss.flops or 0.0, loss.flops is None)
    total, num_items, num_tokens, flops, num_silent = state.ranks.sum([float(v) for v in own])
    state.step += 1
    state.num_items += int(num_items)
    state.num_tokens += int(num_tokens)
    return StepReport(
        loss=total / state.ranks.size,
        parts=dict(zip(loss.parts, values[1 : 1 + num_parts], strict=True)),
        grad_norm=grad_norm,
        skipped=not accepted,
        num_items=int(num_items),
        num_tokens=int(num_tokens),
        sums=dict(zip(loss.means, zip(sums[::2], sums[1::2], strict=True), strict=True)),
        flops=None if num_silent else flops,
    )


def _floats(scalars: Sequence[Tensor]) -> list[float]:
    """Scalars of one device as numbers, in one transfer."""
    return torch.stack([scalar.detach().double().reshape(()) for scalar in scalars]).tolist()


def _clip(parameters: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    """Scale all gradients to a global norm of at most this; the norm before, over all ranks."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients, foreach=True))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm, foreach=True)
    return norm
