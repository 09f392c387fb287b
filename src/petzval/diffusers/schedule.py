"""Diffusers' schedulers, set to Lens's noise levels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petzval.errors import RequestError
from petzval.flow.schedule import empirical_mu, warn_off_family
from petzval.resolution import Resolution


def set_timesteps(
    scheduler: Any,
    num_steps: int,
    resolution: Resolution,
    *,
    device: torch.device,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> Tensor:
    """Set a scheduler up, and tell the levels at which it will call the network, float32 [calls].

    Args:
        scheduler: the published one takes both; what another does not take, it decides itself.
        num_steps: of the solver.
        resolution: decides mu.
        device: of the timesteps.
        sigmas: levels before the shift; evenly spaced ones without them.
        mu: the shift; the exact empirical one without it.

    Warns:
        ScheduleWarning: the size lies where the empirical shift was not fitted.

    Raises:
        RequestError: no steps at all.
    """
    if num_steps < 1:
        raise RequestError(f"num_inference_steps must be at least 1, got {num_steps}")
    if mu is None:
        warn_off_family(resolution.num_tokens)
        mu = empirical_mu(resolution.num_tokens, num_steps)
    if sigmas is None:
        sigmas = np.linspace(1.0, 1.0 / num_steps, num_steps).tolist()
    known = inspect.signature(scheduler.set_timesteps).parameters
    wanted = {"sigmas": sigmas, "mu": mu}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
    if "sigmas" not in given:
        given["num_inference_steps"] = num_steps
    scheduler.set_timesteps(device=device, **given)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return _levels(scheduler)


def _levels(scheduler: Any) -> Tensor:
    """A timestep is a thousandfold level, rounded: the level itself is taken where it is told."""
    rounded = (scheduler.timesteps / scheduler.config.num_train_timesteps).float()
    exact = getattr(scheduler, "sigmas", rounded)[:-1].to(rounded)
    same = len(exact) == len(rounded) and torch.allclose(exact, rounded, atol=1e-4)
    return exact if same else rounded
