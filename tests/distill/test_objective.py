"""An iteration's updates, their order and their effects, on the world whose scores are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from petzval.distill.conditions import Conditions
from petzval.distill.discriminator import Discriminator
from petzval.distill.fake_score import align, as_fake_score, fake_score_layout
from petzval.distill.known_world import SmallNetwork, distillation, pretrained
from petzval.distill.objective import HEADS, DistillationObjective, DistillConfig, Judge
from petzval.distill.renoise import RenoiseConfig
from petzval.errors import TrainingError
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.training.checkpoint import list_checkpoints, load_checkpoint
from petzval.training.loop import LoopConfig, train
from petzval.training.lora import LoraConfig
from petzval.training.metrics import read_metrics
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.state import Part, RunState
from petzval.training.step import training_step

SMALL = DistillConfig(adversarial_weight=0.1, guidance=2.0, critic_updates=2)


@pytest.fixture(scope="module")
def start() -> SmallNetwork:
    return pretrained(5)


def hidden(tokens: Tensor, sigmas: Tensor, told: Conditions) -> list[Tensor]:
    """In place of a teacher's hidden states."""
    return [torch.cat([tokens, tokens.square()], dim=-1), torch.cat([tokens, -tokens], dim=-1)]


def with_heads(
    start: SmallNetwork, config: DistillConfig = SMALL
) -> tuple[DistillationObjective, RunState]:
    """Objective and state with student's average and a discriminator."""
    objective, state = distillation(start, dataclasses.replace(config, adversarial_weight=0.0))
    torch.manual_seed(1)
    heads = Discriminator(4, 2, 8)
    objective.config, objective.judge = config, Judge(features=hidden, heads=heads)
    optimizer = OptimizerConfig(learning_rate=1e-3, betas=(0.0, 0.9))
    state.others[HEADS] = Part(
        model=heads, optimizers=build_optimizers(heads, optimizer), rate_factor=2.0
    )
    return objective, state


def everything(state: RunState) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for prefix, part in state.parts():
        found |= {f"{prefix}{name}": t.clone() for name, t in part.model.state_dict().items()}
        if part.ema is not None:
            found |= {f"{prefix}ema.{name}": t.clone() for name, t in part.ema.averages.items()}
    return found


def test_an_iteration_updates_critics_first_then_the_student(start: SmallNetwork) -> None:
    objective, state = with_heads(start, dataclasses.replace(SMALL, alignment=1.0))
    batch = objective.prepare(objective.batch(0))
    assert [phase.part for phase in objective.phases(batch)] == ["fake", "heads"] * 2 + [""]
    before = everything(state)
    report = training_step(objective, batch, state, max_grad_norm=1.0)
    after = everything(state)
    assert any(not torch.equal(before[name], after[name]) for name in before if "heads" in name)
    # Alignment with weight 1 makes a copy, after the student's own update.
    student = {name: t for name, t in after.items() if name.startswith("layers.")}
    assert student
    for name, tensor in student.items():
        assert torch.equal(after[f"fake.{name}"], tensor)
        assert not torch.equal(before[name], tensor)
    assert report.num_items == 256 and state.step == 1
    assert report.parts["sigma_below"] < 0 and 0.3 < report.parts["std_ratio"] < 3
    assert {"loss_fake", "r1", "norm_matching", "norm_guidance", "cosine"} <= report.parts.keys()
    assert {"grad_norm_fake", "grad_norm_heads"} <= report.parts.keys()


def test_a_batch_is_a_function_of_the_step_and_the_last_call_of_the_step_alone(
    start: SmallNetwork,
) -> None:
    first, _ = with_heads(start)
    second, _ = with_heads(start)
    second._rank = 1
    assert torch.equal(first.batch(3).student.start, first.batch(3).student.start)
    draws = [(first.batch(i).student, second.batch(i).student) for i in range(12)]
    assert all(own.last == other.last for own, other in draws)
    assert not torch.equal(draws[0][0].start, draws[0][1].start)
    assert {own.last for own, _ in draws} == {0, 1, 2, 3}


def test_terms_can_be_left_out(start: SmallNetwork) -> None:
    for config in (
        dataclasses.replace(SMALL, matching=False),
        dataclasses.replace(SMALL, guidance=1.0),
    ):
        objective, state = with_heads(start, config)
        report = training_step(objective, objective.batch(0), state, max_grad_norm=1.0)
        assert (report.parts["norm_matching"] == 0) == (not config.matching)
        assert (report.parts["norm_guidance"] == 0) == (config.guidance == 1)


def test_a_first_step_of_its_own_is_never_matched(start: SmallNetwork) -> None:
    config = dataclasses.replace(SMALL, first_step_weight=1.0, first_step_calls=2)
    objective, state = with_heads(start, config)
    assert {objective.batch(i).student.last for i in range(9)} == {1, 2, 3}
    report = training_step(objective, objective.batch(0), state, max_grad_norm=1.0)
    assert report.parts["loss_first_step"] > 0


def test_coupled_guidance_looks_at_the_same_noisy_pictures(start: SmallNetwork) -> None:
    config = dataclasses.replace(SMALL, renoise=RenoiseConfig(guidance="coupled"))
    draw = with_heads(start, config)[0].batch(0).student
    assert torch.equal(draw.matching, draw.guidance)
    assert torch.equal(draw.other_noise, draw.real.noise)


def test_a_discriminator_is_asked_for_where_it_is_used(start: SmallNetwork) -> None:
    with pytest.raises(ValueError, match="discriminator"):
        distillation(start, SMALL)


def loop(num_steps: int) -> LoopConfig:
    return LoopConfig(
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2), num_steps=num_steps
    )


def test_a_resumed_run_goes_on_bit_by_bit(start: SmallNetwork, tmp_path: Path) -> None:
    objective, straight = with_heads(start)
    train(objective, straight, loop(4), tmp_path / "straight")
    objective, first = with_heads(start)
    train(objective, first, loop(2), tmp_path / "legs")
    objective, second = with_heads(start)
    outcome = train(objective, second, loop(4), tmp_path / "legs")
    assert outcome.reason == "steps" and second.step == 4
    left, right = everything(straight), everything(second)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert second.others["fake"].guard == straight.others["fake"].guard
    rates = [part.optimizers[0].param_groups[0]["lr"] for part in (second, second.others[HEADS])]
    assert rates[1] == pytest.approx(2 * rates[0])
    assert read_metrics(tmp_path / "legs" / "metrics.jsonl") == []


def test_a_checkpoint_of_other_networks_is_refused(start: SmallNetwork, tmp_path: Path) -> None:
    objective, state = with_heads(start)
    train(objective, state, loop(1), tmp_path)
    [path] = list_checkpoints(tmp_path / "checkpoints")
    _, other = distillation(start, dataclasses.replace(SMALL, adversarial_weight=0.0))
    with pytest.raises(TrainingError, match=r"further networks \['fake', 'heads'\]"):
        load_checkpoint(path, other)


def tiny_denoiser() -> MMDiT:
    torch.manual_seed(0)
    model = MMDiT(
        MMDiTConfig(
            num_layers=2,
            num_attention_heads=1,
            in_channels=16,
            out_channels=4,
            enc_hidden_dim=8,
            selected_layer_index=(0,),
        )
    )
    model.initialise()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_alignment_of_a_low_rank_fake_score_is_exact() -> None:
    student, plain = tiny_denoiser(), tiny_denoiser()
    lora = LoraConfig(rank=2, alpha=4.0)
    fake = as_fake_score(tiny_denoiser(), lora, seed=0)
    learning = [name for name, p in fake.named_parameters() if p.requires_grad]
    assert learning and all(".pair." in name for name in learning)
    with torch.no_grad():
        for name, parameter in fake.named_parameters():
            if ".pair." in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
        for parameter in student.parameters():
            parameter.add_(0.05)

    def weight_of(model: MMDiT) -> Tensor:
        layer = model.get_submodule("transformer_blocks.0.attn.img_qkv")
        if hasattr(layer, "pair"):
            change = layer.pair.lora_B @ layer.pair.lora_A  # type: ignore[union-attr,operator]
            return layer.base.weight + lora.scale * change  # type: ignore[union-attr,operator]
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight

    expected = 0.7 * weight_of(fake) + 0.3 * weight_of(student)
    untouched = 0.7 * plain.proj_out.weight + 0.3 * student.proj_out.weight
    align(fake, student, 0.3)
    assert torch.allclose(weight_of(fake), expected, atol=1e-6)
    assert torch.allclose(fake.proj_out.weight, untouched, atol=1e-6)
    assert len(fake_score_layout(fake.config, lora).idle) > len(
        fake_score_layout(fake.config, None).idle
    )
