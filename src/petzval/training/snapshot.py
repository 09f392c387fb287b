"""A run's state as named tensors and a small JSON description, and back; no files yet.

Names of tensors: `model.<name>`, `ema.<name>`, `optimizer.<number>.<parameter>.<moment>`,
`rng.<rank>.<device>`; those of a further network begin with its name and a dot. The tensors of a
sharded run are sharded, and are put back into a run sharded in any other way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from petzval.errors import TrainingError
from petzval.kernels import backends
from petzval.training.objective import Resumable
from petzval.training.state import RunState, SpikeGuard, Trained

WRONG_RUN = "resume with the recipe that started the run, or start another run folder"


def describe(state: RunState, objective: object = None) -> dict[str, Any]:
    """All of the state that is not a tensor, for JSON."""
    return {
        "step": state.step,
        "seconds": state.seconds,
        "num_items": state.num_items,
        "num_tokens": state.num_tokens,
        **_describe_part(state),
        "others": {name: _describe_part(part) for name, part in state.others.items()},
        "ranks": state.ranks.size,
        "config_hash": state.config_hash,
        "sampler": dict(objective.state_dict()) if isinstance(objective, Resumable) else None,
    }


def _describe_part(part: Trained) -> dict[str, Any]:
    return {
        "ema_updates": part.ema.num_updates if part.ema is not None else None,
        "guard": dataclasses.asdict(part.guard),
        "optimizers": [
            {"class": type(optimizer).__name__, "groups": optimizer.state_dict()["param_groups"]}
            for optimizer in part.optimizers
        ],
    }


def restore_description(
    description: Mapping[str, Any], state: RunState, objective: object = None
) -> None:
    """Put the counters back; `sampler` goes to the objective, where both have one."""
    for prefix, part in state.parts():
        told = described(description, prefix)
        if part.ema is not None:
            part.ema.num_updates = int(told["ema_updates"])
        part.guard = SpikeGuard(**told["guard"])
    state.step = int(description["step"])
    state.seconds = float(description["seconds"])
    state.num_items = int(description["num_items"])
    state.num_tokens = int(description["num_tokens"])
    sampler = description.get("sampler")
    if sampler is not None and isinstance(objective, Resumable):
        objective.load_state_dict(sampler)


def described(description: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """The part of a description that is about one network, by its prefix in `RunState.parts`."""
    return description["others"][prefix.removesuffix(".")] if prefix else description


def check_parts(description: Mapping[str, Any], state: RunState, path: Path) -> None:
    """Refuse a state of other networks, or one that other kinds of optimizers wrote."""
    stored = sorted(description.get("others", {}))
    if stored != sorted(state.others):
        raise TrainingError(
            f"{path} holds the further networks {stored}, the recipe has {sorted(state.others)}",
            WRONG_RUN,
        )
    for prefix, part in state.parts():
        check_optimizers(described(description, prefix), part.optimizers, path)


def moments(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Tensors of the optimizers' states, by `<number>.<parameter>.<moment>`."""
    return {
        f"{number}.{index}.{name}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, values in cast(
            "dict[int, dict[str, Any]]", optimizer.state_dict()["state"]
        ).items()
        for name, value in values.items()
    }


def check_optimizers(
    description: Mapping[str, Any], optimizers: Sequence[torch.optim.Optimizer], path: Path
) -> None:
    """Refuse a state that other kinds of optimizers wrote."""
    names = [type(optimizer).__name__ for optimizer in optimizers]
    stored = [entry["class"] for entry in description["optimizers"]]
    if names != stored:
        raise TrainingError(
            f"{path} was written with optimizers {stored}, the recipe has {names}", WRONG_RUN
        )


def restore_moments(
    optimizers: Sequence[torch.optim.Optimizer],
    stored: Mapping[str, Tensor],
    description: Mapping[str, Any],
) -> None:
    """Give the optimizers their moments, already sharded as they need them, and their settings."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in stored.items():
            owner, index, name = key.split(".", 2)
            if int(owner) == number:
                state.setdefault(int(index), {})[name] = value
        groups = description["optimizers"][number]["groups"]
        for group in groups:
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def parameter_of(optimizers: Sequence[torch.optim.Optimizer], key: str) -> Tensor | None:
    """The parameter of a moment `<number>.<parameter>.<moment>`; None if there is no such one."""
    number, index, _ = key.split(".", 2)
    if int(number) >= len(optimizers):
        return None
    held = [p for group in optimizers[int(number)].param_groups for p in group["params"]]
    return held[int(index)] if int(index) < len(held) else None


def random_states(rank: int) -> dict[str, Tensor]:
    """States of torch's global generators on this rank, by `<rank>.<device>`."""
    states = {f"{rank}.cpu": torch.get_rng_state()}
    state = backends.accelerator_random_state()
    if state is not None:
        states[f"{rank}.cuda"] = state
    return states


def restore_random_states(stored: Mapping[str, Tensor], rank: int) -> None:
    """Put the generators back. A rank that did not exist then keeps what it has."""
    if f"{rank}.cpu" in stored:
        torch.set_rng_state(stored[f"{rank}.cpu"].cpu())
    if f"{rank}.cuda" in stored:
        backends.set_accelerator_random_state(stored[f"{rank}.cuda"])


def check_names(
    stored: Mapping[str, Sequence[int]], targets: Mapping[str, Tensor], path: Path
) -> None:
    """Refuse stored shapes by name that are not exactly those of the targets."""
    for name in sorted(targets.keys() ^ stored.keys()):
        where = "lacks" if name in targets else "has the unknown tensor"
        raise TrainingError(f"{path} {where} {name}", WRONG_RUN)
    for name, target in targets.items():
        if list(target.shape) != list(stored[name]):
            raise TrainingError(
                f"{path}: {name} has shape {list(stored[name])}, expected {list(target.shape)}",
                WRONG_RUN,
            )


def sharded_like(whole: Tensor, example: Tensor) -> Tensor:
    """This rank's part of a tensor that it has whole, sharded as the example of the same shape.

    Where the example is not sharded, or has another shape (a counter), the tensor as it is.
    """
    if not isinstance(example, DTensor) or whole.shape != example.shape:
        return whole
    placed = whole.to(example.device)
    # Every rank has the same values: nothing needs to be sent.
    return distribute_tensor(placed, example.device_mesh, example.placements, src_data_rank=None)
