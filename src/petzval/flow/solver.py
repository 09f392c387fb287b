"""Steps of the probability-flow ODE dx / d sigma = v(x, sigma)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, float, int], Tensor]
"""(tokens [B, S, C], sigma, call index) → velocity [B, S, C].

The index counts the network's calls in order.
"""


def euler_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x + (sigma_next - sigma) v; exact on a straight path.

    Args:
        x, velocity: [B, S, C], at `sigma`.
        sigma, sigma_next: noise levels in [0, 1]; the second one is the lower.

    Returns:
        x at `sigma_next`, [B, S, C].
    """
    return x + (sigma_next - sigma) * velocity


def heun_step(
    x: Tensor, velocity: Tensor, velocity_next: Tensor, sigma: float, sigma_next: float
) -> Tensor:
    """Second order: the mean of the slopes at both ends (trapezoidal rule).

    Args:
        x, velocity: [B, S, C], at `sigma`.
        velocity_next: [B, S, C], at `sigma_next`, where an Euler step leads.
        sigma, sigma_next: noise levels in [0, 1]; the second one is the lower.

    Returns:
        x at `sigma_next`, [B, S, C].
    """
    return x + (sigma_next - sigma) * 0.5 * (velocity + velocity_next)
