"""The sampler: a generator of steps, from noise to data.

Progress, previews, cancellation, offload and roll-outs are consumers of this one loop.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from petzval.flow.solver import Denoise, euler_step, heun_step
from petzval.shapes import LatentTokens, Sigmas

Solver = Literal["euler", "heun"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one step leaves behind.

    Attributes:
        index: 0 … num_steps - 1.
        sigma, sigma_next: noise level before and after.
        tokens: state after the step.
        velocity: the network's answer at the step's start.
    """

    index: int
    num_steps: int
    sigma: float
    sigma_next: float
    tokens: Tensor
    velocity: Tensor

    @property
    def data_estimate(self) -> Tensor:
        """The finished picture's tokens as they look from here: x - sigma v."""
        return self.tokens - self.sigma_next * self.velocity


def network_sigmas(sigmas: Sigmas, solver: str = "euler") -> Tensor:
    """The noise levels at which `sample` will call the network, in order of the calls."""
    if solver == "euler":
        return sigmas[:-1]
    levels: list[Tensor] = []
    for index in range(len(sigmas) - 1):
        levels.append(sigmas[index])
        if sigmas[index + 1] > 0:
            levels.append(sigmas[index + 1])
    return torch.stack(levels)


def sample(
    denoise: Denoise,
    noise: LatentTokens,
    sigmas: Sigmas,
    solver: str = "euler",
    *,
    state_dtype: torch.dtype = torch.float32,
) -> Generator[Step, None, None]:
    """Integrate from sigmas[0] to 0, yielding after every step.

    Args:
        denoise: the network with its conditioning and guidance inside.
        noise: state at sigmas[0], [B, S, C].
        sigmas: descending, ending in 0, as `schedule.sigmas` makes them.
        solver: `euler`; or `heun`, second order with two network calls a step (one in the last,
            where the slope at sigma 0 is not defined).
        state_dtype: float32 keeps the state exact; Lens itself rounds it to the network's dtype.

    Raises:
        ValueError: the solver is unknown.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"solver must be 'euler' or 'heun', got {solver!r}")
    levels = [float(sigma) for sigma in sigmas]
    x = noise.to(state_dtype)
    calls = 0
    for index, (sigma, sigma_next) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        velocity = denoise(x, sigma, calls)
        calls += 1
        start = x.float()
        x = euler_step(start, velocity.to(state_dtype), sigma, sigma_next).to(state_dtype)
        if solver == "heun" and sigma_next > 0:
            velocity_next = denoise(x, sigma_next, calls)
            calls += 1
            both = velocity.to(state_dtype), velocity_next.to(state_dtype)
            x = heun_step(start, *both, sigma, sigma_next).to(state_dtype)
        yield Step(
            index=index,
            num_steps=len(levels) - 1,
            sigma=sigma,
            sigma_next=sigma_next,
            tokens=x,
            velocity=velocity,
        )
