"""Four steps of a student against the exact teacher's, on the world whose scores are known."""

from __future__ import annotations

import pytest
import torch

from petzval.distill.known_world import (
    SmallNetwork,
    distilled,
    linear_guidance,
    pictures,
    pretrained,
    sliced_distance,
    true_velocity,
)
from petzval.distill.objective import DistillConfig
from petzval.distill.renoise import Guidance, RenoiseConfig

NUM_ITERATIONS = 120


@pytest.fixture(scope="module")
def start() -> SmallNetwork:
    return pretrained(300)


def student_distance(start: SmallNetwork, guidance: float, levels: Guidance = "below") -> float:
    """Of the student's four steps to what the teacher draws in 50 under this guidance."""
    config = DistillConfig(
        adversarial_weight=0.0, guidance=guidance, renoise=RenoiseConfig(guidance=levels)
    )
    student = distilled(start, config, NUM_ITERATIONS)
    wanted = pictures(linear_guidance(true_velocity, guidance), 50)
    return sliced_distance(pictures(student, 4), wanted)


def test_the_distance_knows_equal_from_unequal() -> None:
    exact = pictures(true_velocity, 50)
    again = pictures(true_velocity, 50, seed=10)
    assert sliced_distance(exact, exact) == 0
    assert sliced_distance(exact, again) < 0.05
    assert sliced_distance(exact, exact + 1) == pytest.approx(float(torch.tensor(0.9)), abs=0.1)


def test_without_guidance_the_student_halves_the_teacher_s_distance(start: SmallNetwork) -> None:
    of_teacher = sliced_distance(pictures(true_velocity, 4), pictures(true_velocity, 50))
    assert of_teacher > 0.25
    assert student_distance(start, 1.0) < 0.6 * of_teacher


def test_under_guidance_the_way_of_time_matters(start: SmallNetwork) -> None:
    guided = linear_guidance(true_velocity, 2.0)
    of_teacher = sliced_distance(pictures(guided, 4), pictures(guided, 50))
    right = student_distance(start, 2.0)
    assert right < 0.5 * of_teacher
    assert student_distance(start, 2.0, "above") > 2 * right
    assert student_distance(start, 2.0, "coupled") > 1.15 * right
