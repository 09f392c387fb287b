"""The straight path between data and noise. Time is sigma: 0 is data, 1 is pure noise."""

from __future__ import annotations

from torch import Tensor


def _column(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(-1, *([1] * (like.ndim - 1)))


def interpolate(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) data + sigma noise.

    Args:
        data, noise: [batch, ...], of one shape.
        sigma: [batch] in [0, 1].
    """
    sigma = _column(sigma, data)
    return (1 - sigma) * data + sigma * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """d x / d sigma = noise - data [batch, ...]: the network's target at every sigma."""
    return noise - data


def predict_data(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The data that a velocity at x_sigma points to: x - sigma v.

    Args:
        x, velocity: [batch, ...], of one shape.
        sigma: [batch] in [0, 1], the noise level of x.
    """
    return x - _column(sigma, x) * velocity
