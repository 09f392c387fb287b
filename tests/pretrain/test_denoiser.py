"""Flow matching: the target, the noise levels, the dropped text."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.flow.path import interpolate
from petzval.flow.schedule import training_mu
from petzval.models.flops import training_flops
from petzval.models.mmdit import MMDiT
from petzval.pretrain import results
from petzval.pretrain.cache import LatentPool
from petzval.pretrain.denoiser import DenoiserConfig, DenoiserObjective
from petzval.pretrain.preview import sample_pictures
from petzval.pretrain.smoke_recipes import smoke_denoiser
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.state import RunState
from petzval.training.step import training_step

CONFIG = DenoiserConfig(bases=(128,), base_shares=(1.0,), batch_tokens=512, steps_per_window=2)


def objective(
    runs: Path, ledger: Path, config: DenoiserConfig = CONFIG, metric: Tensor | None = None
) -> DenoiserObjective:
    torch.manual_seed(0)
    model = MMDiT(smoke_denoiser().model)
    model.initialise()
    encoder = results.load_encoder(
        runs / "language_model", smoke_denoiser().model.selected_layer_index
    )
    pool = LatentPool(
        runs / "latents",
        ledger,
        rescan_steps=4,
        autoencoder_id=results.fingerprint(runs / "vae"),
    )
    tokenizer = PromptTokenizer(runs / "tokenizer")
    return DenoiserObjective(model, encoder, tokenizer, pool, config, metric)


@pytest.fixture
def made(smoke_runs: Path, tmp_path: Path) -> DenoiserObjective:
    return objective(smoke_runs, tmp_path / "ledger.jsonl")


def test_noise_levels_follow_the_logit_normal_and_are_stratified(
    smoke_runs: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, batch_tokens=64 * 128, steps_per_window=1)
    batch = objective(smoke_runs, tmp_path / "ledger.jsonl", config).batch(0)
    count, num_tokens = batch.latents.shape[:2]
    z = torch.logit(batch.sigmas.double()).sort().values - training_mu(num_tokens)
    distribution = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    ranks = torch.arange(count, dtype=torch.float64) / count
    # Kolmogorov-Smirnov: independent draws would be off by about 1 / sqrt(n), strata by 1 / n.
    distance = torch.maximum(distribution - ranks, ranks + 1 / count - distribution).max()
    assert count >= 100
    assert distance <= 1 / count + 1e-4


def test_the_error_is_taken_in_the_metric_asked_for(smoke_runs: Path, tmp_path: Path) -> None:
    weighted = dataclasses.replace(CONFIG, visible_share=0.75)
    with pytest.raises(ValueError, match="metric"):
        objective(smoke_runs, tmp_path / "ledger.jsonl", weighted)
    width = smoke_denoiser().model.in_channels
    metric = torch.diag(torch.linspace(0, 2, width))
    made = objective(smoke_runs, tmp_path / "ledger.jsonl", weighted, metric)
    plain = objective(smoke_runs, tmp_path / "other.jsonl")
    batch = plain.batch(0)
    with torch.no_grad():
        loss, reference = made.loss(batch), plain.loss(batch)
    # A new network predicts 0, so the error is the target: its squares, channel by channel.
    size, num_tokens = batch.latents.shape[:2]
    assert reference.flops == training_flops(
        plain.model.config, [num_tokens] * size, batch.mask.sum(1).tolist()
    )
    squares = (batch.noise - batch.latents).square().mean(dim=(0, 1))
    assert float(reference.value) == pytest.approx(float(squares.mean()), rel=1e-5)
    assert float(loss.parts["loss_plain"]) == pytest.approx(float(reference.value), rel=1e-5)
    expected = (squares * (0.25 + 0.75 * metric.diagonal())).mean()
    assert float(loss.value) == pytest.approx(float(expected), rel=1e-5)


def test_dropped_samples_lose_all_their_text(smoke_runs: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, text_dropout=0.5, batch_tokens=64 * 32)
    batch = objective(smoke_runs, tmp_path / "ledger.jsonl", config).batch(0)
    lengths = batch.mask.sum(1)
    dropped = lengths == 0
    assert 0 < int(dropped.sum()) < len(lengths) or bool(dropped.all())
    assert (lengths[~dropped] > 22).all()
    nothing = dataclasses.replace(config, text_dropout=1.0)
    bare = objective(smoke_runs, tmp_path / "other.jsonl", nothing).batch(0)
    assert bare.ids.shape[1] == 0


def test_a_sample_without_text_equals_the_blank_branch(made: DenoiserObjective) -> None:
    batch = made.batch(0)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(
                0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )
    row = int(batch.mask.sum(dim=1).argmax())  # others may have lost their text already
    mask = batch.mask.clone()
    mask[row] = False
    noisy = interpolate(batch.latents, batch.noise, batch.sigmas)
    features = [feature.float() for feature in made.features(batch.ids, batch.mask)]
    with torch.no_grad():
        masked = made.model.velocity(noisy, features, batch.sigmas, batch.grid, mask)
        alone = made.model.velocity(
            noisy[row : row + 1], [], batch.sigmas[row : row + 1], batch.grid
        )
        told = made.model.velocity(noisy, features, batch.sigmas, batch.grid, batch.mask)
    assert torch.allclose(masked[row], alone[0], atol=1e-5)
    assert (told[row] - alone[0]).abs().max() > 1e-4


def test_a_batch_is_one_bucket_and_a_function_of_the_step(made: DenoiserObjective) -> None:
    first = made.batch(6)
    made.batch(0)
    again = made.batch(6)
    assert first.grid == again.grid
    assert first.latents.shape[1] == first.grid[0] * first.grid[1]
    for name in ("latents", "noise", "sigmas", "ids", "mask"):
        left: Tensor = getattr(first, name)
        assert torch.equal(left, getattr(again, name))


def test_a_perfect_prediction_has_no_loss(
    made: DenoiserObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = made.batch(0)
    monkeypatch.setattr(
        made.model,
        "velocity",
        lambda *args: batch.noise - batch.latents,  # pyright: ignore[reportUnknownLambdaType]
    )
    assert float(made.loss(batch).value) == 0.0
    monkeypatch.setattr(
        made.model,
        "velocity",
        lambda *args: torch.zeros_like(batch.noise),  # pyright: ignore[reportUnknownLambdaType]
    )
    expected = (batch.noise - batch.latents).square().mean()
    loss = made.loss(batch)
    assert float(loss.value) == pytest.approx(float(expected))
    assert loss.num_items == batch.latents.shape[0]
    assert any(name.startswith("loss_t0.") for name in loss.means)


def test_a_batch_is_learnt_by_heart(made: DenoiserObjective) -> None:
    config = OptimizerConfig(kind="muon", learning_rate=0.02)
    state = RunState(model=made.model, optimizers=build_optimizers(made.model, config))
    batch = made.batch(0)
    losses = [training_step(made, batch, state, max_grad_norm=1.0).loss for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_encoder_and_the_latents_take_no_gradient(made: DenoiserObjective) -> None:
    made.loss(made.batch(0)).value.backward()
    assert all(p.grad is None for p in made.encoder.parameters())
    assert any(p.grad is not None for p in made.model.parameters())


def test_previews_depend_on_prompt_and_seed_only(made: DenoiserObjective, smoke_runs: Path) -> None:
    autoencoder = results.load_autoencoder(smoke_runs / "vae")
    prompts = ["a red square", "a blue square on the left of a white picture"]
    pictures = sample_pictures(made, autoencoder, prompts, (4, 6), num_steps=2)
    assert [tuple(picture.shape) for picture in pictures] == [(3, 64, 96)] * 2
    [alone] = sample_pictures(made, autoencoder, prompts[:1], (4, 6), num_steps=2)
    assert torch.allclose(pictures[0], alone, atol=0.05)
