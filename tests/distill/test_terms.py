"""Each term against its closed form, where the true scores are known, and at its edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from petzval.distill import terms
from petzval.distill.conditions import Conditions, Network
from petzval.distill.discriminator import Discriminator
from petzval.distill.known_world import (
    PointSource,
    conditions,
    distillation,
    draw,
    means,
    pretrained,
    true_velocity,
)
from petzval.distill.objective import DistillationObjective, DistillConfig
from petzval.flow.path import interpolate


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_known_velocity_is_that_of_the_samples() -> None:
    """Near one noisy point the mean of noise - data is what the formula says."""
    generator = seeded()
    labels = torch.zeros(400_000, dtype=torch.long)
    data, noise = draw(labels, generator), torch.randn(len(labels), 1, 2, generator=generator)
    noisy = interpolate(data, noise, torch.full((len(labels),), 0.6))
    point = torch.tensor([[[0.5, 0.1]]])
    near = (noisy - point).square().sum(-1)[:, 0] < 0.05**2
    expected = true_velocity(point, torch.tensor([0.6]), conditions(labels[:1]))
    assert int(near.sum()) > 500
    assert torch.allclose((noise - data)[near].mean(0), expected[0], atol=0.06)


def test_with_one_component_left_the_velocity_is_linear() -> None:
    """Far out on one mode's side the others have no say: Gaussian formulas, by hand."""
    sigma = 0.05
    point = 0.95 * means()[1, 0] + torch.tensor([0.02, -0.01])
    got = true_velocity(
        point[None, None], torch.tensor([sigma]), conditions(torch.tensor([1]))
    ).flatten()
    shrink = 0.95 * 0.2**2 / (0.95**2 * 0.2**2 + sigma**2)
    data = means()[1, 0] + shrink * torch.tensor([0.02, -0.01])
    assert torch.allclose(got, (point - data) / sigma, atol=1e-3)


def points(seed: int = 0) -> tuple[DistillationObjective, Tensor]:
    objective, _ = distillation(pretrained(2), DistillConfig(adversarial_weight=0.0, guidance=3.0))
    return objective, objective.batch(seed).student.start


def test_the_matching_gradient_is_its_closed_form() -> None:
    """sigma (v_T - v_phi) / N, with the fake score known exactly: that of shifted data."""
    objective, samples = points()
    shift = torch.tensor([0.3, -0.2])

    def shifted(tokens: Tensor, sigmas: Tensor, told: Conditions) -> Tensor:
        moved = tokens - (1 - sigmas[:, None, None]) * shift
        return true_velocity(moved, sigmas, told) - shift

    objective.fake = Network(velocity=shifted)
    draw_ = objective.batch(0).student
    got = objective.matching_gradient(draw_, samples)
    sigma = draw_.matching[:, None, None]
    noisy = (1 - sigma) * samples + sigma * draw_.real.noise
    told = Conditions.of(draw_.real)
    teacher = true_velocity(noisy, draw_.matching, told)
    scale = (samples - (noisy - sigma * teacher)).abs().mean(dim=(1, 2)).clamp_min(0.1)
    expected = sigma * (teacher - shifted(noisy, draw_.matching, told)) / scale[:, None, None]
    assert torch.allclose(got, expected, atol=1e-5)
    # Data that are shifted are pulled back: descending along g moves against the shift.
    assert float((got * shift).sum(-1).mean()) > 0


def test_the_guidance_gradient_is_its_closed_form() -> None:
    """(w - 1) sigma (v_c - v) / N at the levels of its own."""
    objective, samples = points()
    draw_ = objective.batch(0).student
    got = objective.guidance_gradient(draw_, samples)
    sigma = draw_.guidance[:, None, None]
    noisy = (1 - sigma) * samples + sigma * draw_.other_noise
    told = Conditions.of(draw_.real)
    with_label = true_velocity(noisy, draw_.guidance, told)
    without = true_velocity(noisy, draw_.guidance, told.without_text())
    scale = (samples - (noisy - sigma * with_label)).abs().mean(dim=(1, 2)).clamp_min(0.1)
    expected = 2.0 * sigma * (with_label - without) / scale[:, None, None]
    assert torch.allclose(got, expected, atol=1e-5)
    # Descending along g moves a picture towards its own label's modes.
    centres = means().mean(1)[told.features[0][:, 0].argmax(1)]
    assert float((got[:, 0] * centres).sum(-1).mean()) < 0


def test_nothing_is_taught_where_fake_equals_teacher_and_guidance_is_one() -> None:
    objective, samples = points()
    objective.fake = Network(velocity=true_velocity)
    objective.config = DistillConfig(adversarial_weight=0.0, guidance=1.0)
    draw_ = objective.batch(0).student
    assert not objective.matching_gradient(draw_, samples).any()
    assert not objective.guidance_gradient(draw_, samples).any()


@pytest.mark.parametrize("factor", [0.5, 8.0])
def test_the_normaliser_takes_the_scale_out(factor: float) -> None:
    x, fake, teacher = torch.randn(3, 4, 5, 6, generator=seeded()).unbind(0)
    plain = terms.distribution_matching(x, fake, teacher, floor=0.01)
    scaled = terms.distribution_matching(factor * x, factor * fake, factor * teacher, floor=0.01)
    assert torch.allclose(plain, scaled, atol=1e-5)
    guided = terms.guidance_augmentation(x, fake, teacher, guidance=5.0, floor=0.01)
    scaled = terms.guidance_augmentation(
        factor * x, factor * fake, factor * teacher, guidance=5.0, floor=0.01
    )
    assert torch.allclose(guided, scaled, atol=1e-5)


def test_the_normaliser_has_a_floor_and_is_one_a_sample() -> None:
    x = torch.zeros(2, 3, 4)
    teacher = torch.stack([torch.full((3, 4), 1e-6), torch.full((3, 4), 2.0)])
    assert terms.normaliser(x, teacher, 0.1).tolist() == pytest.approx([0.1, 2.0])


def test_a_pull_has_the_gradient_that_was_asked_for() -> None:
    x = torch.randn(2, 3, 4, generator=seeded()).requires_grad_()
    wanted = torch.randn(2, 3, 4, generator=seeded(1))
    [got] = torch.autograd.grad(terms.pull(x, wanted).sum(), x)
    assert torch.allclose(got, wanted / 12, atol=1e-6)


def test_logistic_losses_at_zero_and_far_out() -> None:
    zero, far = torch.zeros(1), torch.tensor([50.0])
    assert float(terms.discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(terms.discriminator_loss(far, -far)) == pytest.approx(0, abs=1e-6)
    assert float(terms.generator_loss(-far)) == pytest.approx(50)


def test_r1_is_zero_for_a_constant_discriminator_and_quadratic_for_a_linear_one() -> None:
    constant = torch.full((5,), 0.7)
    assert not terms.approximate_r1(constant, constant, 1.0).any()
    slope, noise = torch.tensor([3.0, -4.0]), torch.randn(200_000, 2, generator=seeded())
    logits = terms.approximate_r1(torch.zeros(len(noise)), 0.1 * noise @ slope, 1.0)
    assert float(logits.mean()) == pytest.approx(0.5 * 0.1**2 * 25, rel=0.02)


def test_a_discriminator_of_silent_heads_is_constant() -> None:
    heads = Discriminator(4, 2, 3)
    for name, parameter in heads.named_parameters():
        if "score" in name:
            torch.nn.init.zeros_(parameter)
    states = [torch.randn(2, 5, 4, generator=seeded(i)) for i in range(2)]
    assert not heads(states).any()
    assert Discriminator(4, 2, 3)(states).shape == (2,)


@pytest.mark.parametrize("weight", [0.0, 0.03, 1.0])
def test_alignment_moves_the_fake_score_towards_the_student(weight: float) -> None:
    fake, student = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}
    expected = (1 - weight) * fake["w"] + weight * student["w"]
    terms.align(fake, student, weight)
    assert torch.allclose(fake["w"], expected)


def test_the_first_step_s_target_is_the_mean_slope_of_the_teacher_s_path() -> None:
    start, reached = torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.9)
    right = torch.full((1, 1, 2), 2.0)
    assert float(terms.first_step_loss(right, start, reached, 0.05)) == pytest.approx(0, abs=1e-9)
    assert float(terms.first_step_loss(right + 1, start, reached, 0.05)) == pytest.approx(1)


def test_the_fake_score_s_target_is_the_velocity_of_the_student_s_pictures() -> None:
    batch = PointSource(batch_size=4).batch(0)
    exact = batch.noise - batch.latents
    assert not terms.fake_score_loss(exact, batch.latents, batch.noise).any()
    off = terms.fake_score_loss(exact + 2, batch.latents, batch.noise)
    assert off.tolist() == pytest.approx([4.0] * 4)
