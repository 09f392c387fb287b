"""The student's own path, as inference walks it: DMD2's backward simulation.

A student that learns from re-noised *real* pictures meets other inputs when it draws. Here its
inputs are its own: noise, its Euler steps without gradient, and the gradient at its last call only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.distill.conditions import Conditions, Velocity
from petzval.flow.guidance import guide
from petzval.flow.path import predict_data
from petzval.flow.schedule import inference_sigmas
from petzval.flow.solver import euler_step


def student_sigmas(grid: tuple[int, int], num_steps: int) -> list[float]:
    """The levels of this bucket's pictures, ending in 0: those that inference would use."""
    return [float(sigma) for sigma in inference_sigmas(grid[0] * grid[1], num_steps)]


def simulate(
    velocity: Velocity, noise: Tensor, conditions: Conditions, levels: list[float], last: int
) -> Tensor:
    """x = x_k - sigma_k v_theta(x_k, sigma_k, c), x_k from `last` Euler steps without gradient.

    Args:
        velocity: the student's.
        noise: [B, S, C], the state at levels[0].
        levels: descending, ending in 0.
        last: index k of the call that keeps its gradient (under `no_grad` none does); the one
            before the end gives exactly what the sampler would return.
    """
    with torch.no_grad():
        x = follow(velocity, noise, conditions, levels[: last + 1])
    sigma = torch.full((noise.shape[0],), levels[last], device=noise.device)
    return predict_data(x, velocity(x, sigma, conditions), sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class EulerStep:
    """One step of a path.

    Attributes:
        state: [B, S, C], where the velocity was asked for.
        sigmas: [B], the level there, the same for all.
        velocity: [B, S, C].
        reached: [B, S, C], the state at the next level.
    """

    state: Tensor
    sigmas: Tensor
    velocity: Tensor
    reached: Tensor


def walk(
    velocity: Velocity, x: Tensor, conditions: Conditions, levels: list[float]
) -> Iterator[EulerStep]:
    """The steps from levels[0] to the last level, one after the other."""
    for sigma, sigma_next in zip(levels[:-1], levels[1:], strict=True):
        column = torch.full((x.shape[0],), sigma, device=x.device)
        slope = velocity(x, column, conditions)
        reached = euler_step(x, slope, sigma, sigma_next)
        yield EulerStep(state=x, sigmas=column, velocity=slope, reached=reached)
        x = reached


def follow(velocity: Velocity, x: Tensor, conditions: Conditions, levels: list[float]) -> Tensor:
    """Where Euler steps from levels[0] to the last level lead."""
    for step in walk(velocity, x, conditions, levels):
        x = step.reached
    return x


def guided(velocity: Velocity, scale: float) -> Velocity:
    """A velocity under guidance as inference has it: the norm of each token kept."""

    def call(tokens: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
        conditional = velocity(tokens, sigmas, conditions)
        return guide(conditional, velocity(tokens, sigmas, conditions.without_text()), scale)

    return call


def between(start: float, stop: float, num_steps: int) -> list[float]:
    """num_steps + 1 evenly spaced levels, both ends included."""
    return [start + (stop - start) * index / num_steps for index in range(num_steps)] + [stop]
