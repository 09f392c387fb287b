from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from petzval.evals.likeness import (
    Components,
    features,
    frechet_distance,
    kernel_distance,
    over_prompts,
    sharpness,
    variety,
)
from petzval.scoring.scorer import Picture


def normal(
    count: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0
) -> NDArray[np.float64]:
    return shift + scale * np.random.default_rng(seed).standard_normal((count, 6))


class MeanColour:
    """Features of a picture: its mean colour."""

    num_features, side, identity = 3, 8, "mean"

    def __call__(self, cutouts: Tensor) -> Tensor:
        return cutouts.mean(dim=(2, 3))


def test_the_frechet_distance_of_known_normals() -> None:
    """|shift|² + d (s1 - s2)² for isotropic normals in d dimensions."""
    found = frechet_distance(normal(20_000), normal(20_000, shift=0.5, scale=2.0, seed=1))
    assert found == pytest.approx(6 * 0.25 + 6 * 1.0, rel=0.05)
    same = normal(50)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_is_symmetric_and_grows_with_the_shift() -> None:
    near, far = normal(300, 0.2, seed=1), normal(300, 1.0, seed=2)
    base = normal(300)
    assert frechet_distance(base, near) == pytest.approx(frechet_distance(near, base))
    assert frechet_distance(base, near) < frechet_distance(base, far)


def test_the_kernel_distance_is_zero_on_average_for_one_distribution() -> None:
    found = [kernel_distance(normal(60, seed=2 * s), normal(60, seed=2 * s + 1)) for s in range(40)]
    assert abs(float(np.mean(found))) < 3 * float(np.std(found)) / math.sqrt(40)
    assert min(found) < 0, "unbiased, so sometimes below zero"
    assert kernel_distance(normal(60), normal(60, shift=1.0, seed=1)) > max(found)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_one_picture_has_no_distance(distance: object) -> None:
    assert callable(distance)
    with pytest.raises(ValueError, match="at least two pictures"):
        distance(normal(1), normal(5))


def test_components_keep_what_varies_most() -> None:
    vectors = normal(200) * np.array([5.0, 4.0, 1e-3, 1e-3, 1e-3, 1e-3])
    components = Components.of(vectors, 2)
    kept = components(vectors)
    assert kept.shape == (200, 2)
    assert kept.var(axis=0).sum() == pytest.approx(vectors.var(axis=0).sum(), rel=1e-5)
    assert components.axes.T @ components.axes == pytest.approx(np.eye(2))


def test_few_pictures_have_fewer_components() -> None:
    assert Components.of(normal(4), 64).axes.shape == (6, 3)


def test_variety_is_the_mean_distance_within_a_prompt() -> None:
    vectors = np.array([[0.0, 0.0], [3.0, 4.0], [7.0, 7.0], [0.0, 0.0], [0.0, 6.0], [8.0, 0.0]])
    found = variety(vectors, ["a", "a", "alone", "b", "b", "b"])
    assert found == {"a": 5.0, "b": pytest.approx((6 + 8 + 10) / 3)}


def test_a_blurred_picture_is_less_sharp() -> None:
    sharp = np.zeros((32, 32, 3), np.uint8)
    sharp[:, 16:] = 255
    soft = sharp.copy()
    soft[:, 14:18] = np.array([50, 100, 150, 200], np.uint8)[None, :, None]
    assert sharpness(sharp) > 2 * sharpness(soft) > 0
    assert sharpness(np.full((8, 8, 3), 77, np.uint8)) == pytest.approx(0)


def test_features_are_of_whole_pictures_of_any_shape() -> None:
    pictures: list[Picture] = [
        np.full((16, 32, 3), (255, 0, 0), np.uint8),
        np.full((48, 16, 3), (0, 51, 0), np.uint8),
    ]
    found = features(pictures, MeanColour())
    assert found == pytest.approx(np.array([[1.0, 0, 0], [0, 0.2, 0]]), abs=1e-6)
    assert not torch.is_grad_enabled() or found.dtype == np.float64


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal(1000)
    prompts = [str(i) for i in range(1000)]
    found = over_prompts(lambda chosen: float(values[chosen].mean()), prompts, num_groups=1000)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-6)


def test_pictures_of_a_prompt_are_left_out_together() -> None:
    """Ten copies of each value are no ten times as much evidence."""
    values = np.repeat(np.random.default_rng(4).standard_normal(40), 10)
    apart = [str(i) for i in range(400)]
    together = [str(i // 10) for i in range(400)]

    def mean(chosen: NDArray[np.int64]) -> float:
        return float(values[chosen].mean())

    honest = over_prompts(mean, together, num_groups=40)
    sure = over_prompts(mean, apart, num_groups=400)
    assert honest.error > 2.5 * sure.error


def test_the_error_of_one_prompt_is_not_known() -> None:
    found = over_prompts(lambda chosen: float(len(chosen)), ["a", "a"])
    assert found.value == 2 and math.isnan(found.error)
