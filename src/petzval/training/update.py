"""One update of one network: forward, backward, clip, and the optimizers' turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.training.objective import Loss
from petzval.training.parallel import full_tensor
from petzval.training.ranks import Ranks
from petzval.training.state import Trained, within
from petzval.training.tallies import add_tallies
from petzval.training.weighting import Weighting, weighted


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What one update measured.

    Attributes:
        loss: this rank's; of several batches, what they say together.
        minimised: the value whose gradient was taken.
        grad_norm: global norm before clipping, of all ranks.
        accepted: False if the spike guard refused the update.
        part: the network's name among the run's; "" for its model.
    """

    loss: Loss
    minimised: Tensor
    grad_norm: float
    accepted: bool
    part: str = ""


def update(
    trained: Trained,
    losses: Iterable[Callable[[], Loss]],
    ranks: Ranks,
    *,
    max_grad_norm: float,
    autocast: torch.dtype | None = None,
    weighting: Weighting = "rank",
    part: str = "",
) -> Update:
    """Advance one network; all ranks together, and all alike.

    Args:
        trained: its parameters, averages and spike guard change.
        losses: one for each batch of the update, as many on every rank. Each is asked for when the
            one before is done; together they weigh as the batches of as many more ranks would.
        ranks: the processes of the run.
        max_grad_norm: gradients are scaled down to this global norm.
        autocast: type of the matrix products; parameters and updates stay float32.
        weighting: what a batch weighs among the others.
        part: the network's name, for the record.
    """
    parameters = [p for p in trained.model.parameters() if p.requires_grad]
    for optimizer in trained.optimizers:
        optimizer.zero_grad(set_to_none=True)
    found, minimised = _backward(trained, losses, ranks, autocast, weighting)
    # Every rank acts on one and the same number, whatever their own last bits are.
    grad_norm = ranks.of_first(float(_clip(parameters, max_grad_norm)))
    accepted = trained.guard.accepts(grad_norm)
    if accepted:
        for optimizer in trained.optimizers:
            optimizer.step()
        if trained.ema is not None:
            trained.ema.update(trained.model)
    return Update(
        loss=_joined(found), minimised=minimised, grad_norm=grad_norm, accepted=accepted, part=part
    )


def _backward(
    trained: Trained,
    calls: Iterable[Callable[[], Loss]],
    ranks: Ranks,
    autocast: torch.dtype | None,
    weighting: Weighting,
) -> tuple[list[Loss], Tensor]:
    """Add up the gradients of all batches; what each lost, and the value that was minimised.

    A batch's weight among the others is known when all have run. Until then gradients are in units
    of the first one's weight.
    """
    parameters = [p for p in trained.model.parameters() if p.requires_grad]
    device = parameters[0].device.type
    losses: list[Loss] = []
    weights: list[float] = []
    values: list[Tensor] = []
    for call in calls:

        def value(call: Callable[[], Loss] = call) -> Tensor:
            with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
                losses.append(call())
            own, weight = weighted(losses[-1], weighting, ranks)
            weights.append(weight)
            return own if len(weights) == 1 else own * (weight / weights[0])

        minimised = within(trained.root, value)
        minimised.backward()  # pyright: ignore[reportUnknownMemberType]
        values.append(minimised.detach())
    if trained.root is not None:
        idle = (each for each in losses[0].idle if all(each in loss.idle for loss in losses))
        trained.root.drop_idle_gradients(tuple(idle))
    if len(weights) == 1:
        return losses, values[0]
    share = weights[0] / sum(weights)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(share)
    return losses, torch.stack(values).sum() * share


def _joined(losses: Sequence[Loss]) -> Loss:
    """What an update's batches say together, for the log."""
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


def _clip(parameters: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    """Scale all gradients to a global norm of at most this; the norm before, over all ranks."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients, foreach=True))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm, foreach=True)
    return norm
