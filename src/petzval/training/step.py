"""One step of a run: an update of its model, or several updates in turn, of several networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from petzval.training.objective import Alternating, BatchT, Loss, Objective
from petzval.training.state import RunState
from petzval.training.update import Update, update
from petzval.training.weighting import Weighting


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step measured.

    Attributes:
        loss: the value that the model minimised, over all ranks.
        parts: this rank's named scalars, each the mean over the updates that gave it.
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
        objective: gives the loss; or, if it is `Alternating`, the updates that make up a step.
        batch: from `objective.batch(state.step)`.
        state: changed in place; `state.step` grows by one also when the update is refused.
        max_grad_norm: gradients are scaled down to this global norm.
        autocast: type of the matrix products; parameters and updates stay float32.
        weighting: what this rank's batch weighs among the others'.
        more: further batches of this step, as many on every rank. Each is taken when the one before
            is done; together they weigh as the batches of as many more ranks would. Not for an
            `Alternating` objective, whose step has one batch.
    """

    def advance(part: str, losses: Iterable[Callable[[], Loss]]) -> Update:
        return update(
            state.part(part),
            losses,
            state.ranks,
            max_grad_norm=max_grad_norm,
            autocast=autocast,
            weighting=weighting,
            part=part,
        )

    if isinstance(objective, Alternating):
        phases = cast("Alternating[BatchT]", objective).phases(batch)
        return _report([advance(phase.part, (phase.loss,)) for phase in phases], state)
    losses = (partial(objective.loss, each) for each in chain((batch,), more))
    return _report([advance("", losses)], state)


def _report(updates: Sequence[Update], state: RunState) -> StepReport:
    """Count the step, and put together what the updates and the ranks saw."""
    last = [made for made in updates if not made.part][-1]
    losses = [made.loss for made in updates]
    # What the other networks learned from is the same samples again, or the model's own.
    num_items = sum(made.loss.num_items for made in updates if not made.part)
    num_tokens = sum(made.loss.num_tokens for made in updates if not made.part)
    flops = [0.0 if each.flops is None else each.flops for each in losses]
    num_silent = sum(each.flops is None for each in losses)
    own = (float(last.minimised), num_items, num_tokens, sum(flops), num_silent)
    total, all_items, all_tokens, done, all_silent = state.ranks.sum([float(v) for v in own])
    state.step += 1
    state.num_items += int(all_items)
    state.num_tokens += int(all_tokens)
    parts, sums = _logged(updates)
    return StepReport(
        loss=total / state.ranks.size,
        parts=parts,
        grad_norm=last.grad_norm,
        skipped=not last.accepted,
        num_items=int(all_items),
        num_tokens=int(all_tokens),
        sums=sums,
        flops=None if all_silent else done,
    )


def _logged(
    updates: Sequence[Update],
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """This rank's scalars, and its sums and counts, over all updates; in one transfer."""
    scalars = [(name, value) for made in updates for name, value in made.loss.parts.items()]
    tallies = [(name, tally) for made in updates for name, tally in made.loss.means.items()]
    values = _floats(
        [value for _, value in scalars]
        + [number for _, tally in tallies for number in (tally.total, tally.count)]
    )
    found = [(name, (value, 1.0)) for (name, _), value in zip(scalars, values, strict=False)]
    found += [(f"grad_norm_{m.part}", (m.grad_norm, 1.0)) for m in updates if m.part]
    means = {name: total / count for name, (total, count) in _added(found).items()}
    rest = values[len(scalars) :]
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return means, _added([(name, pair) for (name, _), pair in zip(tallies, pairs, strict=True)])


def _added(entries: Sequence[tuple[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    sums: dict[str, tuple[float, float]] = {}
    for name, (total, count) in entries:
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + total, before[1] + count)
    return sums


def _floats(scalars: Sequence[Tensor]) -> list[float]:
    """Scalars of one device as numbers, in one transfer."""
    if not scalars:
        return []
    return torch.stack([scalar.detach().double().reshape(()) for scalar in scalars]).tolist()
