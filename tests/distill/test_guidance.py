"""Guidance distillation against its equation, on the world whose velocity is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from petzval.distill.conditions import Conditions, Network
from petzval.distill.guidance import GuidanceConfig, GuidanceObjective
from petzval.distill.known_world import (
    GRID,
    PointSource,
    SmallNetwork,
    pictures,
    pretrained,
    sliced_distance,
    true_velocity,
)
from petzval.distill.rollout import guided, student_sigmas
from petzval.errors import ConfigError
from petzval.flow.guidance import guide
from petzval.flow.sampler import sample
from petzval.training.ema import Ema
from petzval.training.optimizer import OptimizerConfig, build_optimizers, set_learning_rate
from petzval.training.state import RunState
from petzval.training.step import training_step

SCALE = 2.0


def objective(student: SmallNetwork, scale: float = SCALE, rank: int = 0) -> GuidanceObjective:
    return GuidanceObjective(
        PointSource(batch_size=64),
        Network(velocity=student),
        Network(velocity=true_velocity),
        GuidanceConfig(guidance=scale),
        rank=rank,
        flops=lambda batch: 1.0,
    )


def test_the_loss_is_its_equation_along_the_sampler_s_own_path() -> None:
    student = pretrained(20)
    taught = objective(student)
    batch = taught.prepare(taught.batch(0))
    told = Conditions.of(batch.real)
    levels = student_sigmas(GRID, 4)
    expected: list[Tensor] = []

    def denoise(tokens: Tensor, sigma: float, call: int) -> Tensor:
        column = torch.full((64,), sigma)
        asked = true_velocity(tokens, column, told)
        wanted = guide(asked, true_velocity(tokens, column, told.without_text()), SCALE)
        expected.append((student(tokens, column, told) - wanted).square().mean())
        return wanted

    for _ in sample(denoise, batch.start, torch.tensor(levels)):
        pass
    loss = taught.loss(batch)
    assert len(expected) == 4
    torch.testing.assert_close(loss.value, sum(expected, torch.zeros(())))
    for number, each in enumerate(expected, start=1):
        torch.testing.assert_close(loss.parts[f"loss_step_{number}"], each.detach())
    assert loss.num_items == 64 and loss.flops == 20
    wanted = torch.autograd.grad(sum(expected, torch.zeros(())), list(student.parameters()))
    student.zero_grad()
    loss.value.backward()
    for parameter, gradient in zip(student.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_at_guidance_1() -> None:
    taught = objective(SmallNetwork(), scale=1.0)
    taught.student = taught.teacher
    assert taught.loss(taught.batch(0)).value < 1e-10


def test_a_batch_is_a_function_of_the_step_and_the_rank() -> None:
    student = SmallNetwork()
    same, other = objective(student), objective(student, rank=1)
    assert torch.equal(same.batch(3).start, objective(student).batch(3).start)
    assert not torch.equal(same.batch(3).start, same.batch(4).start)
    assert not torch.equal(same.batch(3).start, other.batch(3).start)


def test_a_student_draws_alone_what_its_teacher_draws_with_guidance() -> None:
    """In as many steps; the unguided network that it began as does not."""
    start = pretrained(600)
    student = copy.deepcopy(start)
    taught = objective(student)
    settings = OptimizerConfig(learning_rate=2e-3, weight_decay=0.0)
    state = RunState(
        model=student, optimizers=build_optimizers(student, settings), ema=Ema(student, 0.9)
    )
    for step in range(200):
        set_learning_rate(state.optimizers, 2e-3 * (1 - step / 200))
        training_step(taught, taught.batch(step), state, max_grad_norm=1.0)
    teacher = pictures(guided(true_velocity, SCALE), 4)
    before, after = (sliced_distance(pictures(one, 4), teacher) for one in (start, student))
    assert after < 0.06 < 0.1 < before, (before, after)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_steps"):
        GuidanceConfig(num_steps=0)
    with pytest.raises(ConfigError, match="guidance"):
        GuidanceConfig(guidance=-1.0)
