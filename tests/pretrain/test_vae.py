"""The autoencoder's objective: crops, noise, statistics, and that it learns a batch by heart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from petzval.models.latents import normalise, patchify
from petzval.models.vae import Autoencoder
from petzval.pretrain.scenes import ColouredSquares, to_tensor
from petzval.pretrain.smoke_recipes import smoke_vae
from petzval.pretrain.vae import (
    AutoencoderObjective,
    AutoencoderObjectiveConfig,
    fit_statistics,
    gradient_l1,
    initialise_autoencoder,
    multiscale_l1,
    statistics_images,
)
from petzval.resolution import Resolution
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.state import RunState
from petzval.training.step import training_step

TINY = smoke_vae().model


def objective(config: AutoencoderObjectiveConfig) -> AutoencoderObjective:
    torch.manual_seed(0)
    model = Autoencoder(TINY)
    initialise_autoencoder(model)
    return AutoencoderObjective(model, ColouredSquares(), config)


def test_batches_have_one_side_and_cost_alike() -> None:
    made = objective(
        AutoencoderObjectiveConfig(crops=(16, 32), crop_shares=(0.5, 0.5), batch_pixels=4096)
    )
    shapes = {tuple(made.batch(step).images.shape) for step in range(12)}
    assert shapes == {(16, 3, 16, 16), (4, 3, 32, 32)}
    first, again = made.batch(3), made.batch(3)
    assert torch.equal(first.images, again.images) and first.seed == again.seed
    assert first.images.min() >= -1 and first.images.max() <= 1


def test_a_batch_is_learnt_by_heart() -> None:
    made = objective(AutoencoderObjectiveConfig(crops=(32,), crop_shares=(1.0,), batch_pixels=4096))
    config = OptimizerConfig(kind="muon", learning_rate=0.01, weight_decay=0.0)
    state = RunState(model=made.model, optimizers=build_optimizers(made.model, config))
    batch = made.batch(0)
    psnr = [training_step(made, batch, state, max_grad_norm=1.0).parts["psnr"] for _ in range(25)]
    assert psnr[-1] > psnr[0] + 6


def test_the_loss_does_not_depend_on_global_randomness() -> None:
    made = objective(AutoencoderObjectiveConfig(crops=(16,), crop_shares=(1.0,), batch_pixels=512))
    batch = made.batch(0)
    losses: list[Tensor] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(made.loss(batch).value.detach())
    assert torch.equal(losses[0], losses[1])


def test_statistics_normalise_the_tokens_exactly() -> None:
    model = objective(AutoencoderObjectiveConfig()).model
    scenes = ColouredSquares()
    images = [to_tensor(scenes.pixels(index, Resolution(32, 64)))[None] for index in range(6)]
    count = fit_statistics(model, iter(images))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = torch.cat([patchify(model.encode(image).float()) for image in images])
    bn = model.bn
    normal = normalise(tokens, bn.running_mean, bn.running_var, 0.0).flatten(0, 1)
    assert count == normal.shape[0] == 48
    assert normal.mean(0).abs().max() < 1e-3
    assert (normal.var(0, unbiased=False) - 1).abs().max() < 1e-3


def test_statistics_see_every_size_once_for_each_scene() -> None:
    batches = list(statistics_images(ColouredSquares(), (128,), 30, 0))
    assert sum(batch.shape[0] for batch in batches) == 30
    assert len({batch.shape[2:] for batch in batches}) == 9


def test_loss_terms_on_known_differences() -> None:
    zero, one = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert float(multiscale_l1(zero, one)) == pytest.approx(1.0)
    assert float(gradient_l1(zero, one)) == 0.0
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 1.0
    assert float(gradient_l1(zero, checks.expand(1, 3, 8, 8))) == pytest.approx(2.0)
    assert float(multiscale_l1(zero, checks.expand(1, 3, 8, 8) - 0.5)) == pytest.approx(0.5 / 3)
