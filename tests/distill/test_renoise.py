"""The direction of time, in one function."""

from __future__ import annotations

import pytest
import torch

from petzval.distill.renoise import RenoiseConfig, renoise_levels
from petzval.errors import ConfigError

STEPS = (1.0, 0.9674, 0.7, 0.03, 0.02, 1e-3, 1e-7)


@pytest.mark.parametrize("step_sigma", STEPS)
def test_guidance_looks_at_less_noise_than_the_step_it_teaches(step_sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = renoise_levels(step_sigma, 20_000, generator, RenoiseConfig())
    assert bool((levels.guidance < step_sigma).all()) and bool((levels.guidance > 0).all())
    assert float(levels.matching.min()) >= 0.02 and float(levels.matching.max()) <= 0.98
    assert float(levels.matching.mean()) == pytest.approx(0.5, abs=0.01)


def test_both_levels_are_uniform_and_independent() -> None:
    levels = renoise_levels(0.8, 50_000, torch.Generator().manual_seed(1), RenoiseConfig())
    assert float(levels.guidance.mean()) == pytest.approx(0.41, abs=0.005)
    both = torch.stack([levels.matching, levels.guidance])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.02


def test_the_wrong_ways_are_wrong_as_they_say() -> None:
    generator = torch.Generator().manual_seed(2)
    above = renoise_levels(0.7, 5000, generator, RenoiseConfig(guidance="above"))
    assert bool((above.guidance >= 0.7).all()) and bool((above.guidance <= 0.98).all())
    coupled = renoise_levels(0.7, 5000, generator, RenoiseConfig(guidance="coupled"))
    assert torch.equal(coupled.guidance, coupled.matching)


def test_the_same_generator_gives_the_same_levels() -> None:
    pair = [
        renoise_levels(0.5, 7, torch.Generator().manual_seed(3), RenoiseConfig()) for _ in range(2)
    ]
    assert torch.equal(pair[0].guidance, pair[1].guidance)


def test_levels_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="'highest'"):
        RenoiseConfig(highest=1.5)
