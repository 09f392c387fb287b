"""Learning rates, parameter groups, and Muon's promise of near-orthogonal updates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from petzval.errors import ConfigError
from petzval.models.mmdit import MMDiT
from petzval.models.sizes import MINI_MMDIT
from petzval.training.muon import Muon, orthogonalize
from petzval.training.optimizer import (
    OptimizerConfig,
    build_optimizers,
    group_parameters,
    learning_rate_factor,
)
from tests.training.toy import LinearObjective, toy_model


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48), (3, 16, 24)])
def test_updates_are_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = torch.linalg.svdvals(matrices)
    after = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert before.amax() / before.amin() > 3
    assert after.min() > 0.3 and after.max() < 1.35
    assert (after > 0.6).float().mean() > 0.9


def test_orthogonalisation_keeps_the_directions() -> None:
    matrix = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    alignment = (orthogonalize(matrix).float() * (u @ vh)).sum() / 16
    assert alignment > 0.8


@pytest.mark.parametrize("shape", [(96, 32), (8, 16, 3, 3), (2, 16, 24)])
def test_updates_have_the_size_of_an_adamw_update(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    Muon([parameter], lr=1.0).step()
    rms = parameter.detach().square().mean().sqrt()
    assert 0.12 < rms < 0.28


def test_every_parameter_is_updated_exactly_once() -> None:
    model = MMDiT(MINI_MMDIT)
    groups = group_parameters(model, "muon")
    names = [*groups.muon, *groups.decayed, *groups.plain]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    held = [id(p) for o in build_optimizers(model, OptimizerConfig(kind="muon"))
            for g in o.param_groups for p in g["params"]]  # fmt: skip
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_only_hidden_matrices_are_orthogonalised_and_vectors_do_not_decay() -> None:
    model = MMDiT(MINI_MMDIT)
    groups = group_parameters(model, "muon")
    parameters = dict(model.named_parameters())
    assert "transformer_blocks.0.attn.img_qkv.weight" in groups.muon
    for name in ("img_in.weight", "txt_in.weight", "proj_out.weight", "norm_out.linear.weight",
                 "transformer_blocks.0.img_mod.1.weight"):  # fmt: skip
        assert name in groups.decayed
    assert all(parameters[name].ndim == 1 for name in groups.plain)
    assert all(parameters[name].ndim > 1 for name in groups.decayed)
    [adamw] = build_optimizers(model, OptimizerConfig(kind="adamw"))
    decays = {group["weight_decay"]: len(group["params"]) for group in adamw.param_groups}
    assert decays[0.0] == len(groups.plain)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_both_kinds_learn(kind: str) -> None:
    model = toy_model()
    config = OptimizerConfig(kind="muon" if kind == "muon" else "adamw", learning_rate=0.03)
    objective, optimizers = LinearObjective(model), build_optimizers(model, config)
    losses: list[float] = []
    for step in range(120):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = objective.loss(objective.batch(step)).value
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_learning_rate_over_a_run() -> None:
    config = OptimizerConfig(warmup_steps=10, decay="cooldown", cooldown=0.5, final_fraction=0.1)
    assert learning_rate_factor(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate_factor(config, 9, 0.01) == 1.0
    assert learning_rate_factor(config, 500, 0.5) == 1.0
    assert learning_rate_factor(config, 750, 0.75) == pytest.approx(0.55)
    assert learning_rate_factor(config, 1000, 1.0) == pytest.approx(0.1)
    cosine = OptimizerConfig(warmup_steps=0, decay="cosine")
    assert learning_rate_factor(cosine, 3, 0.5) == pytest.approx(0.5)
    assert learning_rate_factor(OptimizerConfig(warmup_steps=0), 3, 0.9) == 1.0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        OptimizerConfig(learning_rate=0.0)
    with pytest.raises(ConfigError, match="final_fraction"):
        OptimizerConfig(final_fraction=2.0)
    with pytest.raises(ConfigError, match="cooldown"):
        OptimizerConfig(cooldown=0.0)
