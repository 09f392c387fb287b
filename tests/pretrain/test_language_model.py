"""The language model's objective: what is predicted, behind which prefix, by which experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from petzval.conditioning.template import SUFFIX_LENGTH
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.models.experts import MixtureOfExperts
from petzval.pretrain.language_model import (
    CausalLanguageModel,
    LanguageModelConfig,
    LanguageModelObjective,
    RouterWatch,
    initialise_language_model,
)
from petzval.pretrain.scenes import ColouredSquares
from petzval.pretrain.smoke_recipes import smoke_language_model
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.state import RunState
from petzval.training.step import training_step


@pytest.fixture
def objective(golden_checkpoint: Path) -> LanguageModelObjective:
    import dataclasses

    tokenizer = PromptTokenizer(golden_checkpoint / "tokenizer")
    config = dataclasses.replace(smoke_language_model().model, vocab_size=tokenizer.num_ids)
    torch.manual_seed(0)
    model = CausalLanguageModel(config)
    initialise_language_model(model)
    settings = LanguageModelConfig(batch_size=3, steps_per_window=2)
    return LanguageModelObjective(model, ColouredSquares(), tokenizer, settings)


def test_prompt_and_answer_are_weighed_and_the_fixed_suffix_is_not(
    objective: LanguageModelObjective,
) -> None:
    sample = objective.sample(0)
    batch = objective.collate([sample, objective.sample(1)])
    weights = batch.weights[0, : len(sample.ids)]
    prompt_end = sample.final_start - SUFFIX_LENGTH
    assert (weights[: prompt_end + 1] == torch.tensor(0.3)).all()
    assert (weights[prompt_end + 1 : sample.final_start] == 0).all()
    assert (weights[sample.final_start :] == 1).all()
    assert (batch.weights[~batch.mask] == 0).all()
    text = objective.tokenizer.decode(sample.ids)
    prompt, answer, _ = ColouredSquares().example(0)
    assert text.startswith(f"{prompt}<|end|>")
    assert text.endswith(f"<|channel|>final<|message|>{answer}<|return|>")


def test_the_shared_prefix_changes_nothing(objective: LanguageModelObjective) -> None:
    batch = objective.collate([objective.sample(1), objective.sample(2)])
    model = objective.model
    shared = model.hidden(batch.prefix, batch.ids, batch.mask)
    whole = torch.cat((batch.prefix.expand(2, -1), batch.ids), dim=1)
    full_mask = torch.cat((torch.ones(2, 97, dtype=torch.bool), batch.mask), dim=1)
    straight = model.norm(model.encoder(whole, full_mask)[-1])[:, 97:]
    assert torch.allclose(shared[batch.mask], straight[batch.mask], atol=1e-5)
    assert (shared[batch.mask] ** 2).mean() > 0.1


def test_the_prefix_carries_a_gradient(objective: LanguageModelObjective) -> None:
    batch = objective.collate([objective.sample(0)])
    objective.loss(batch).value.backward()
    gradient = objective.model.encoder.model.embed_tokens.weight.grad
    assert gradient is not None
    only_in_prefix = sorted(set(batch.prefix[0].tolist()) - set(batch.ids[0].tolist()))
    # The head is the same matrix, so compare with what the head alone would give.
    objective.model.zero_grad()
    states = objective.model.hidden(batch.prefix, batch.ids, batch.mask)
    loss = F.cross_entropy(
        F.linear(states[0, :-1], objective.model.encoder.model.embed_tokens.weight.detach()),
        batch.ids[0, 1:],
    )
    loss.backward()
    through = objective.model.encoder.model.embed_tokens.weight.grad
    assert through is not None and through[only_in_prefix].abs().sum() > 0


def test_a_batch_is_learnt_by_heart(objective: LanguageModelObjective) -> None:
    config = OptimizerConfig(kind="muon", learning_rate=0.02)
    state = RunState(model=objective.model, optimizers=build_optimizers(objective.model, config))
    batch = objective.batch(0)
    parts = [training_step(objective, batch, state, max_grad_norm=1.0).parts for _ in range(25)]
    assert parts[0]["final_turn"] > 4 and parts[-1]["final_turn"] < 1


def test_batches_are_a_function_of_the_step(objective: LanguageModelObjective) -> None:
    later = objective.batch(5)
    objective.batch(0)
    assert torch.equal(objective.batch(5).ids, later.ids)
    assert torch.equal(objective.batch(5).prefix, later.prefix)


def test_half_of_the_steps_show_another_date(objective: LanguageModelObjective) -> None:
    prefixes = {tuple(objective.batch(step).prefix[0].tolist()) for step in range(12)}
    assert len(prefixes) > 2


def test_balance_is_one_when_experts_share_evenly() -> None:
    experts = MixtureOfExperts(
        width=8, intermediate=8, num_experts=4, num_chosen=1, limit=7.0, packing=None
    )
    watch = RouterWatch(experts)
    with torch.no_grad():
        experts.router.weight.copy_(10 * torch.eye(4, 8))
    experts(torch.eye(4, 8)[None])
    assert float(watch.balance().detach()) == pytest.approx(1.0, abs=1e-3)
    experts(torch.eye(4, 8)[:1].expand(1, 4, 8))
    assert float(watch.balance().detach()) == pytest.approx(4.0, abs=0.01)


def test_losses_are_told_apart_by_language(objective: LanguageModelObjective) -> None:
    losses = objective.final_turn_losses(6, 100)
    assert sorted(losses) == ["en", "es"]
    assert all(loss > 1 for loss in losses.values())
