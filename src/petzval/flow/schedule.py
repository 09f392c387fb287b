"""Noise levels: the schedule of inference and the density of training.

Inference: FLUX.2's empirical mu, a function of token count and step count, and an exponential time
shift. Training: logit-normal with a mean that grows with the token count (Lens paper, section 2.3).
The two mu are different things.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CLIFF_TOKENS = 4300
"""Above this many image tokens the step count no longer enters mu, and mu drops by about one."""

LARGE_FAMILY_TOKENS = 7676
"""The smallest preset of the 1440 family; between it and the cliff no preset lies."""


class ScheduleWarning(UserWarning):
    """The size lies where the empirical schedule was not fitted."""


def empirical_mu(num_tokens: int, num_steps: int) -> float:
    """FLUX.2's fit: 4096 tokens and 4 steps give 2.291179894; 8100 tokens 1.82775366.

    Two lines in the token count, for 10 and for 200 steps, are joined linearly in the step count;
    above 4300 tokens the 200-step line holds alone.
    """
    at_200_steps = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > CLIFF_TOKENS:
        return at_200_steps
    at_10_steps = 8.73809524e-05 * num_tokens + 1.89833333
    slope = (at_200_steps - at_10_steps) / 190.0
    return slope * num_steps + (at_200_steps - 200.0 * slope)


def warn_off_family(num_tokens: int) -> None:
    """Warn where a free size falls between the two preset families (mu 2.3 → 1.2 at the cliff)."""
    if CLIFF_TOKENS < num_tokens < LARGE_FAMILY_TOKENS:
        warnings.warn(
            f"{num_tokens} image tokens lie between the 1024 and 1440 presets, where the "
            f"schedule's shift drops to mu = {empirical_mu(num_tokens, 4):.2f}; "
            "pass mu (about 2.0) for more noise in the early steps",
            ScheduleWarning,
            stacklevel=2,
        )


def sigmas(num_steps: int, mu: float) -> Tensor:
    """float32 [num_steps + 1]: linspace(1, 1/N, N) shifted by mu, then 0. Starts at exactly 1.

    The shift is e^mu / (e^mu + 1/u - 1). In numpy's float32, whose division rounds once where
    torch's (scalar by tensor) rounds twice: bit-equal to the scheduler Lens was published with.

    Raises:
        ValueError: fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    uniform = np.linspace(1.0, 1.0 / num_steps, num_steps).astype(np.float32)
    factor = math.exp(mu)
    shifted = factor / (factor + (1.0 / uniform - 1.0))
    return torch.from_numpy(np.append(shifted, np.float32(0.0)))


def inference_sigmas(num_tokens: int, num_steps: int) -> Tensor:
    """The levels of a picture of so many tokens, float32 [num_steps + 1]: `sigmas` at its mu.

    Whoever trains for a number of steps trains on these.
    """
    return sigmas(num_steps, empirical_mu(num_tokens, num_steps))


def training_mu(num_tokens: int) -> float:
    """Mean of logit(t) in training: 1.0 at 256 tokens to 1.3 at 4096, linear between and beyond.

    1024 tokens give 1.06 (Lens paper, section 2.3).
    """
    return 1.0 + 0.3 * (num_tokens - 256) / (4096 - 256)


def training_sigmas(uniform: Tensor, num_tokens: Sequence[int], *, std: float = 1.0) -> Tensor:
    """Noise levels [samples] in (0, 1): sigmoid(mu(n) + std z), z the normal quantile of a draw.

    Args:
        uniform: [samples] float64 in [0, 1).
        num_tokens: image tokens of each sample.
        std: of logit(t).
    """
    mu = torch.tensor([training_mu(each) for each in num_tokens], dtype=torch.float64)
    normal: Tensor = torch.special.ndtri(uniform.clamp(1e-7, 1 - 1e-7))
    return torch.sigmoid(mu + std * normal).float()


def sample_training_sigmas(
    num_samples: int,
    num_tokens: int,
    generator: torch.Generator,
    *,
    std: float = 1.0,
    stratified: bool = True,
) -> Tensor:
    """Noise levels [num_samples] in (0, 1) of pictures of one size; see `training_sigmas`.

    Stratified: one draw in each of num_samples equal slices of probability, in random order; the
    same distribution with less variance over a batch.
    """
    uniform = torch.rand(num_samples, generator=generator, dtype=torch.float64)
    if stratified:
        order = torch.randperm(num_samples, generator=generator)
        uniform = (order + uniform) / num_samples
    return training_sigmas(uniform, [num_tokens] * num_samples, std=std)
