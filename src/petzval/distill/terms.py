"""Every term of the distillation losses, as a function of tensors.

Notation: x is the student's picture, x_s = (1 - s) x + s noise its re-noised form, D_T and D_phi
the data that teacher and fake score see in it (x_s - s v, `flow.path.predict_data`), c the prompt.

    DMD2                arXiv:2405.14867     distribution matching, fake score, two time scales
    Decoupled-DMD       arXiv:2511.22677     the gradient in two, each with noise levels of its own
    SenseFlow           arXiv:2506.00523     implicit distribution alignment
    APT                 arXiv:2501.08316     approximate R1
    DP-DMD              arXiv:2602.03139     the first step learns where the teacher's path leads
    guidance            arXiv:2210.03142     the guided velocity as one network's

All arithmetic is float32, and every value is one a sample [B] unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from petzval.flow.path import velocity


def _mean(x: Tensor) -> Tensor:
    """[B, ...] → [B]."""
    return x.float().flatten(1).mean(1)


def fake_score_loss(predicted: Tensor, samples: Tensor, noise: Tensor) -> Tensor:
    """mean |v_phi(x_s, s, c) - (noise - x)|^2: the fake score follows the student's pictures."""
    return _mean((predicted.float() - velocity(samples, noise).float()).square())


def normaliser(samples: Tensor, teacher_data: Tensor, floor: float) -> Tensor:
    """max(floor, mean |x - D_T(x_s, c)|), detached: how far the teacher would move the picture.

    Gradients are divided by it, so that pictures of all noise levels and contrasts weigh alike.
    """
    return _mean((samples - teacher_data).abs()).detach().clamp_min(floor)


def _divided(gradient: Tensor, by: Tensor) -> Tensor:
    return gradient.float() / by.reshape(-1, *([1] * (gradient.ndim - 1)))


def distribution_matching(
    samples: Tensor, fake_data: Tensor, teacher_data: Tensor, *, floor: float = 0.1
) -> Tensor:
    """g_DM = (D_phi(x_s, c) - D_T(x_s, c)) / N, [B, ...].

    The reverse KL divergence's gradient between the student's and the teacher's distributions at
    level s, up to a positive factor (DMD2, equation 2).
    """
    return _divided(fake_data - teacher_data, normaliser(samples, teacher_data, floor))


def guidance_augmentation(
    samples: Tensor,
    conditional_data: Tensor,
    unconditional_data: Tensor,
    *,
    guidance: float,
    floor: float = 0.1,
) -> Tensor:
    """g_CA = -(w - 1) (D_T(x_s, c) - D_T(x_s)) / N, [B, ...].

    Guidance is linear here, as in Decoupled-DMD; Lens' rescaling to the conditional norm belongs to
    a velocity that is followed, and this is a direction. N is the conditional prediction's.
    """
    difference = (1 - guidance) * (conditional_data - unconditional_data)
    return _divided(difference, normaliser(samples, conditional_data, floor))


def pull(samples: Tensor, gradient: Tensor) -> Tensor:
    """1/2 mean |x - sg(x - g)|^2: a loss whose gradient at x is g / (numbers of a sample)."""
    target = (samples.detach() - gradient).float()
    return 0.5 * _mean((samples.float() - target).square())


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """l(D(real_s)) + l(-D(x_s)) with l(r) = log(1 + e^-r); logits [B] in, at the same level s."""
    return F.softplus(-real.float()) + F.softplus(fake.float())


def generator_loss(fake: Tensor) -> Tensor:
    """l(D(x_s)) = log(1 + e^-D): what the student gains by being taken for real."""
    return F.softplus(-fake.float())


def approximate_r1(logits: Tensor, perturbed: Tensor, gamma: float) -> Tensor:
    """1/2 gamma (D(real_s) - D(real_s + alpha noise))^2.

    For small alpha its mean is alpha^2 times the R1 penalty 1/2 gamma |grad D|^2, without a second
    derivative (APT, section 3.3; the Lens paper keeps the square as it is).
    """
    return 0.5 * gamma * (logits.float() - perturbed.float()).square()


def first_step_loss(predicted: Tensor, start: Tensor, reached: Tensor, distance: float) -> Tensor:
    """mean |v_theta(noise, 1, c) - (noise - x_T) / (1 - s_2)|^2.

    Args:
        predicted: the student's velocity at the first level.
        start: the noise.
        reached: where the guided teacher's own steps lead from it, at the second level.
        distance: first level less the second.
    """
    return _mean((predicted.float() - (start - reached).float() / distance).square())


def velocity_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """mean |v_theta(x_k, s_k, c) - v_k|^2, v_k the guided teacher's."""
    return _mean((predicted.float() - wanted.float()).square())


@torch.no_grad()
def align(fake: Mapping[str, Tensor], student: Mapping[str, Tensor], weight: float) -> None:
    """phi <- (1 - mu) phi + mu theta: implicit distribution alignment, in place.

    Only the weights move; the fake score's moments stay. Names are the student's.
    """
    assert fake.keys() == student.keys(), "fake score and student differ in names"
    for name, parameter in fake.items():
        parameter.lerp_(student[name].to(parameter.dtype), weight)
