"""Steps of the probability-flow ODE dx / d sigma = v(x, sigma)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, float, int], Tensor]
"""(tokens, sigma, call index) → velocity. The index counts the network's calls in order."""


def euler_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x + (sigma_next - sigma) v; exact on a straight path."""
    return x + (sigma_next - sigma) * velocity


def heun_step(
    x: Tensor, velocity: Tensor, velocity_next: Tensor, sigma: float, sigma_next: float
) -> Tensor:
    """Second order: the mean of the slopes at both ends (trapezoidal rule)."""
    return x + (sigma_next - sigma) * 0.5 * (velocity + velocity_next)
