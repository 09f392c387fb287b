"""Previews look like the pictures that they foretell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petzval.inference import projection
from petzval.inference.dead_leaves import dead_leaves
from petzval.inference.pipeline import Pipeline
from petzval.inference.projection import (
    LatentProjection,
    find_projection,
    fingerprint,
    fit,
    make_projection,
)
from petzval.models.latents import normalise, patchify
from petzval.models.vae import Autoencoder, AutoencoderConfig

PROMPTS = ("a red apple on a white background", "a penguin", "two apples and a blue car")
LEAST_CORRELATION = 0.95
"""Between a preview's pixels and the decoded picture's, at the preview's size."""


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return Pipeline.load("mini", device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested of a fit here does not need all its pictures."""
    monkeypatch.setattr(projection, "_FIT_PICTURES", 4)
    monkeypatch.setattr(projection, "_FIT_SIDE", 192)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(projection.CACHE_VARIABLE, str(tmp_path))
    return tmp_path / "previews"


def _correlation(one: Tensor, other: Tensor) -> float:
    pair = np.stack([one.numpy().ravel(), other.numpy().ravel()])
    return float(np.corrcoef(pair)[0, 1])


def _tokens(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    statistics = autoencoder.bn
    latents = autoencoder.encode(images)
    mean, variance = statistics.running_mean, statistics.running_var
    return normalise(patchify(latents), mean, variance, statistics.eps)


def test_the_preview_of_every_step_looks_like_the_decoded_picture(mini: Pipeline) -> None:
    mini.moving.previews.begin()
    seen: list[float] = []
    for event in mini.steps(PROMPTS, steps=4, size="256x192"):
        decoded = torch.from_numpy(event.preview()).permute(0, 3, 1, 2).float() / 127.5 - 1
        assert event.small_preview is not None
        small = torch.from_numpy(event.small_preview()).permute(0, 3, 1, 2).float() / 127.5 - 1
        assert small.shape == (1, 3, 96, 128)
        seen.append(_correlation(small, F.avg_pool2d(decoded, 2)))
    assert len(seen) == 12
    assert min(seen) > LEAST_CORRELATION, seen


def test_the_one_that_ships_is_minis(mini: Pipeline, cache: Path) -> None:
    name = f"{fingerprint(mini.autoencoder)}.safetensors"
    assert (projection._shipped() / name).is_file(), (
        "mini has another autoencoder: run python -m petzval.inference.projection"
    )
    assert (projection._shipped() / name).stat().st_size < 20_000
    assert find_projection(mini.autoencoder) is not None
    assert not cache.exists()


def _flux_layout() -> Autoencoder:
    """32 latent channels as FLUX.2 has them, in a network small enough for a test."""
    torch.manual_seed(3)
    config = AutoencoderConfig(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    statistics = _raw_statistics(autoencoder)
    autoencoder.bn.running_mean.copy_(statistics[0])
    autoencoder.bn.running_var.copy_(statistics[1])
    return autoencoder


def _raw_statistics(autoencoder: Autoencoder) -> tuple[Tensor, Tensor]:
    tokens = patchify(autoencoder.encode(dead_leaves(2, 64))).flatten(0, 1)
    return tokens.mean(0), tokens.var(0)


def test_an_unknown_autoencoder_gets_its_own_once(cache: Path) -> None:
    autoencoder = _flux_layout()
    assert find_projection(autoencoder) is None
    first = make_projection(autoencoder)
    kept = cache / f"{fingerprint(autoencoder)}.safetensors"
    assert kept.is_file()
    unseen = dead_leaves(1, 64, seed=9)
    small = first(_tokens(autoencoder, unseen), (4, 4))
    decoded = F.avg_pool2d(autoencoder.decode(autoencoder.encode(unseen)), 2)
    assert _correlation(small, decoded) > 0.5  # a random decoder is far from smooth
    again = find_projection(autoencoder)
    assert again is not None
    assert torch.allclose(first.weight, again.weight, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", None])
def test_a_damaged_file_counts_as_absent(cache: Path, content: bytes | None) -> None:
    autoencoder = _flux_layout()
    kept = cache / f"{fingerprint(autoencoder)}.safetensors"
    kept.parent.mkdir(parents=True)
    if content is None:  # of another autoencoder
        other = LatentProjection(
            weight=torch.zeros(48, 7, 3, 3),
            bias=torch.zeros(48),
            mean=torch.zeros(28),
            variance=torch.ones(28),
            eps=0.0,
        )
        content = other.to_bytes()
    kept.write_bytes(content)
    assert find_projection(autoencoder) is None
    make_projection(autoencoder)
    assert find_projection(autoencoder) is not None


def test_a_cache_that_cannot_be_written_is_gone_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(projection.CACHE_VARIABLE, str(tmp_path / "file"))
    assert make_projection(_flux_layout()).weight.shape == (48, 32, 3, 3)


def test_a_fit_is_the_same_twice() -> None:
    autoencoder = _flux_layout()
    assert torch.equal(fit(autoencoder).weight, fit(autoencoder).weight)


def test_dead_leaves_depend_on_their_seed_alone() -> None:
    first = dead_leaves(2, 32, seed=1, num_leaves=20)
    assert torch.equal(first, dead_leaves(2, 32, seed=1, num_leaves=20))
    assert not torch.equal(first, dead_leaves(2, 32, seed=2, num_leaves=20))
    assert float(first.min()) >= -1
    assert float(first.max()) <= 1
