"""The flow's mathematics against closed forms and published values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from petzval.flow import guidance, noise, path, sampler, schedule


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("num_tokens", "num_steps", "expected"),
    [
        (4096, 4, 2.291179894),
        (4096, 8, 2.267890439),
        (4096, 20, 2.198022073),
        (4096, 50, 2.023351157),
        (8100, 4, 1.82775366),
        (8100, 50, 1.82775366),
        (4300, 20, 2.2167),
        (4301, 20, 1.1847),
    ],
)
def test_empirical_mu(num_tokens: int, num_steps: int, expected: float) -> None:
    limit = 1e-8 if expected > 1.2 and num_tokens not in (4300, 4301) else 1e-4
    assert abs(schedule.empirical_mu(num_tokens, num_steps) - expected) < limit


def test_turbo_sigmas() -> None:
    got = schedule.sigmas(4, schedule.empirical_mu(4096, 4))
    expected = torch.tensor([1.0, 0.96738404, 0.90814394, 0.76719993, 0.0])
    assert torch.allclose(got, expected, atol=1e-7)
    assert got[0] == 1.0
    assert schedule.sigmas(1, 2.0).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="at least 1"):
        schedule.sigmas(0, 1.0)


def test_warning_between_the_families() -> None:
    schedule.warn_off_family(4232)
    schedule.warn_off_family(7676)
    with pytest.warns(schedule.ScheduleWarning, match="6400 image tokens"):
        schedule.warn_off_family(6400)


@pytest.mark.parametrize("stratified", [False, True])
def test_training_sigmas_are_logit_normal(stratified: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = schedule.sample_training_sigmas(4096, 1024, generator, stratified=stratified)
    z: Tensor = torch.special.ndtr(torch.logit(drawn.double()) - schedule.training_mu(1024))
    z = z.sort().values
    empirical = torch.arange(1, 4097, dtype=torch.float64) / 4096
    distance: float = (z - empirical).abs().max().item()  # Kolmogorov-Smirnov
    assert distance < (0.001 if stratified else 1.36 / math.sqrt(4096))
    assert schedule.training_mu(256) == 1.0
    assert abs(schedule.training_mu(1024) - 1.06) < 1e-12
    assert abs(schedule.training_mu(4096) - 1.3) < 1e-12


def test_path_ends_and_prediction() -> None:
    data, eps = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    assert torch.equal(path.interpolate(data, eps, torch.zeros(3)), data)
    assert torch.equal(path.interpolate(data, eps, torch.ones(3)), eps)
    sigma = torch.tensor([0.2, 0.5, 0.9])
    x = path.interpolate(data, eps, sigma)
    assert torch.allclose(path.predict_data(x, path.velocity(data, eps), sigma), data, atol=1e-6)


def test_guidance_keeps_the_norm_of_each_token() -> None:
    conditional, unconditional = draw(2, 5, 16), draw(2, 5, 16, seed=1)
    guided = guidance.guide(conditional, unconditional, 5.0)
    assert torch.allclose(guided.norm(dim=-1), conditional.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(guidance.guide(conditional, unconditional, 1.0), conditional, atol=1e-5)
    zero = torch.zeros(1, 2, 16)
    assert torch.equal(guidance.guide(zero, zero, 3.0), zero)


def test_noise_belongs_to_the_picture() -> None:
    together = noise.initial_noise([7, 8], (3, 5), 64)
    alone = [noise.initial_noise([seed], (3, 5), 64) for seed in (7, 8)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], together[1])


def test_noise_of_other_programs() -> None:
    batch = noise.initial_noise([7, 8], (4, 4), 64, mode="microsoft", dtype=torch.bfloat16)
    expected = torch.randn(
        (2, 16, 64), generator=torch.Generator().manual_seed(7), dtype=torch.bfloat16
    )
    assert torch.equal(batch, expected.float())
    comfy = noise.initial_noise([7], (3, 5), 64, mode="comfyui")
    grid = torch.randn((1, 64, 3, 5), generator=torch.Generator().manual_seed(7))
    assert torch.equal(comfy[0, 5 * 1 + 2], grid[0, :, 1, 2])


def test_one_euler_step_is_exact_on_a_straight_path() -> None:
    data, eps = draw(2, 4, 8), draw(2, 4, 8, seed=1)
    steps = list(sampler.sample(lambda x, s, i: eps - data, eps, schedule.sigmas(1, 1.0)))
    assert torch.allclose(steps[-1].tokens, data, atol=1e-6)


def test_order_of_the_solvers() -> None:
    """dx/dsigma = x has x(0) = x(1) / e; halving the step divides the error by 2 and by 4."""
    start = torch.ones(1, 1, 1, dtype=torch.float64)

    def error(solver: str, num_steps: int) -> float:
        levels = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
        # The last Heun step is an Euler step, so measure where sigma stays above zero.
        levels = 0.5 + 0.5 * levels
        steps = list(
            sampler.sample(lambda x, s, i: x, start, levels, solver, state_dtype=torch.float64)
        )
        return abs(steps[-1].tokens.item() - math.exp(-0.5))

    assert 1.8 < error("euler", 32) / error("euler", 64) < 2.2
    assert 3.5 < error("heun", 8) / error("heun", 16) < 4.5


def test_network_sigmas_name_every_call() -> None:
    levels = schedule.sigmas(5, 1.5)
    for solver in ("euler", "heun"):
        seen: list[float] = []

        def denoise(x: Tensor, sigma: float, index: int, seen: list[float] = seen) -> Tensor:
            assert index == len(seen)
            seen.append(sigma)
            return x

        list(sampler.sample(denoise, torch.ones(1, 1, 1), levels, solver))
        assert seen == [float(s) for s in sampler.network_sigmas(levels, solver)]


def test_the_sampler_can_be_stopped_and_names_its_steps() -> None:
    levels = schedule.sigmas(10, 1.0)
    steps = sampler.sample(lambda x, s, i: x, torch.ones(1, 1, 1), levels)
    first = next(steps)
    steps.close()
    assert (first.index, first.num_steps, first.sigma) == (0, 10, 1.0)
    with pytest.raises(ValueError, match="solver"):
        next(sampler.sample(lambda x, s, i: x, torch.ones(1, 1, 1), levels, "rk4"))
