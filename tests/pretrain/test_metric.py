"""The metric that the decoder puts on latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petzval.models.latents import denormalise, unpatchify
from petzval.pretrain import results
from petzval.pretrain.metric import blend, visibility_metric


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randn(32, 16, 16, generator=torch.Generator().manual_seed(0))


def test_it_predicts_how_far_pixels_move(smoke_runs: Path, tokens: torch.Tensor) -> None:
    autoencoder = results.load_autoencoder(smoke_runs / "vae")
    metric = visibility_metric(autoencoder, tokens, (4, 4))
    values, vectors = torch.linalg.eigh(metric)
    assert float(metric.trace()) == pytest.approx(16, rel=1e-4)
    assert torch.allclose(metric, metric.T) and float(values[0]) >= -1e-4

    def moved(direction: torch.Tensor) -> float:
        """Mean squared change of the pictures when one token moves a little."""
        nudged = tokens.clone()
        nudged[:, 5] += 0.01 * direction
        bn = autoencoder.bn
        pictures = [
            autoencoder.decode(
                unpatchify(denormalise(t, bn.running_mean, bn.running_var, bn.eps), (4, 4))
            )
            for t in (tokens, nudged)
        ]
        return float((pictures[1] - pictures[0]).square().sum())

    most, least = moved(vectors[:, -1]), moved(vectors[:, 0])
    assert most > 2 * least
    assert most / least == pytest.approx(float(values[-1] / values[0]), rel=0.5)


def test_it_depends_on_the_seed_only(smoke_runs: Path, tokens: torch.Tensor) -> None:
    autoencoder = results.load_autoencoder(smoke_runs / "vae")
    first, again, other = (
        visibility_metric(autoencoder, tokens, (4, 4), seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first - other).norm() < 0.2 * first.norm()


def test_a_share_of_zero_is_the_plain_square() -> None:
    metric = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0]))
    assert torch.equal(blend(metric, 0.0), torch.eye(4))
    assert torch.equal(blend(metric, 1.0), metric)
    assert torch.allclose(blend(metric, 0.5).diagonal(), torch.tensor([2.0, 1.0, 0.5, 0.5]))
