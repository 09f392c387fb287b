"""The student's path is that of inference, and its gradient that of one call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from petzval.distill.conditions import Conditions
from petzval.distill.known_world import GRID, conditions, true_velocity
from petzval.distill.rollout import between, follow, guided, simulate, student_sigmas
from petzval.flow.guidance import guide
from petzval.flow.sampler import sample
from petzval.flow.schedule import sigmas
from petzval.inference.plan import make_plan
from petzval.inference.request import GenerationRequest
from petzval.inference.variants import Defaults
from petzval.resolution import PRESETS


def told(size: int = 5) -> Conditions:
    return conditions(torch.arange(size) % 3)


def noise(size: int = 5) -> Tensor:
    return torch.randn(size, 1, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("base", [128, 256, 1024, 1440])
def test_timesteps_are_those_that_inference_uses_at_every_size(base: int) -> None:
    for size in PRESETS[base].values():
        request = GenerationRequest(prompt="a cat", height=size.height, width=size.width)
        plan = make_plan(request, Defaults(steps=4, guidance=1.0, base=base))
        assert student_sigmas(size.grid, 4) == sigmas(plan.steps, plan.mu).tolist()


def test_timesteps_of_lens_turbo_at_1024() -> None:
    assert student_sigmas((64, 64), 4) == pytest.approx(
        [1, 0.96738404, 0.90814394, 0.76719993, 0], abs=1e-7
    )


def test_a_whole_path_is_what_the_sampler_returns() -> None:
    levels = student_sigmas(GRID, 4)
    got = simulate(true_velocity, noise(), told(), levels, 3)

    def denoise(tokens: Tensor, sigma: float, call: int) -> Tensor:
        return true_velocity(tokens, torch.full((5,), sigma), told())

    *_, last = sample(denoise, noise(), torch.tensor(levels))
    assert torch.allclose(got, last.tokens, atol=1e-6)


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_the_gradient_touches_the_last_call_only(last: int) -> None:
    levels = student_sigmas(GRID, 4)
    gains = torch.ones(4, requires_grad=True)
    seen: list[float] = []

    def velocity(tokens: Tensor, sigma: Tensor, told: Conditions) -> Tensor:
        index = len(seen)
        seen.append(float(sigma[0]))
        return gains[index] * true_velocity(tokens, sigma, told)

    picture = simulate(velocity, noise(), told(), levels, last)
    [gradient] = torch.autograd.grad(picture.sum(), gains)
    assert seen == pytest.approx(levels[: last + 1])
    assert [index for index in range(4) if gradient[index] != 0] == [last]


def test_guidance_on_the_way_is_inference_s() -> None:
    sigma = torch.full((5,), 0.8)
    with_label = true_velocity(noise(), sigma, told())
    without = true_velocity(noise(), sigma, told().without_text())
    got = guided(true_velocity, 4.0)(noise(), sigma, told())
    assert torch.equal(got, guide(with_label, without, 4.0))


def test_levels_between_two_include_both() -> None:
    assert between(1.0, 0.5, 2) == [1.0, 0.75, 0.5]
    assert torch.equal(follow(true_velocity, noise(), told(), [1.0]), noise())
