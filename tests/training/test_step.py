"""One step: clipped, guarded, counted."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from petzval.training.objective import Phase
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.ranks import Ranks
from petzval.training.state import Part, SpikeGuard
from petzval.training.step import training_step
from petzval.training.weighting import Weighting
from tests.training.shared import SharedObjective, WholeObjective, adamw, small_state
from tests.training.toy import LinearObjective, Pairs, toy_model, toy_state


def test_a_step_lowers_the_loss_and_counts() -> None:
    state = toy_state(OptimizerConfig(learning_rate=0.05))
    objective = LinearObjective(state.model)
    reports = [
        training_step(objective, objective.batch(0), state, max_grad_norm=1.0) for _ in range(30)
    ]
    assert reports[-1].loss < reports[0].loss
    assert reports[0].parts["error"] == pytest.approx(reports[0].loss)
    assert (state.step, state.num_items, state.num_tokens) == (30, 480, 1920)
    assert state.ema is not None and state.ema.num_updates == 30


def test_a_poisoned_batch_is_skipped_and_the_run_goes_on() -> None:
    state = toy_state(OptimizerConfig(learning_rate=0.05))
    objective = LinearObjective(state.model, poisoned=1)
    training_step(objective, objective.batch(0), state, max_grad_norm=1.0)
    before = copy.deepcopy(state.model.state_dict())
    report = training_step(objective, objective.batch(1), state, max_grad_norm=1.0)
    assert report.skipped and state.guard.num_skipped == 1 and state.step == 2
    assert all(torch.equal(before[k], v) for k, v in state.model.state_dict().items())
    report = training_step(objective, objective.batch(2), state, max_grad_norm=1.0)
    assert not report.skipped and report.loss < 10


@pytest.mark.parametrize("by_item", [False, True])
@pytest.mark.parametrize("weighting", ["rank", "sample", "token"])
def test_batches_of_one_step_weigh_as_ranks_do(weighting: Weighting, by_item: bool) -> None:
    sizes = (12, 4)
    whole, parts = small_state(adamw(), Ranks()), small_state(adamw(), Ranks())
    reference = WholeObjective(whole.model, sizes, weighting)
    expected = training_step(reference, reference.batch(3), whole, max_grad_norm=1e9)
    first, second = (
        SharedObjective(parts.model, rank, sizes, by_item=by_item) for rank in range(2)
    )
    found = training_step(
        first,
        first.batch(3),
        parts,
        max_grad_norm=1e9,
        weighting=weighting,
        more=iter([second.batch(3)]),
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert (found.num_items, found.num_tokens) == (16, expected.num_tokens)
    assert found.sums["loss_bucket_of_1"][1] == 4.0 and found.flops == 16e6
    assert parts.step == 1


def test_gradients_are_clipped() -> None:
    state = toy_state(OptimizerConfig())
    objective = LinearObjective(state.model)
    report = training_step(objective, objective.batch(0), state, max_grad_norm=1e-3)
    norms = [p.grad.norm() for p in state.model.parameters() if p.grad is not None]
    assert report.grad_norm > 1e-2
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_spikes_are_refused_after_the_warm_up_only() -> None:
    guard = SpikeGuard(factor=5.0, warmup=10)
    assert all(guard.accepts(norm) for norm in [50.0, *[1.0] * 30])
    assert guard.average == pytest.approx(1.0, abs=0.6)
    assert not guard.accepts(1000.0)
    assert guard.accepts(1.5)
    assert (guard.num_skipped, guard.num_accepted) == (1, 32)


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_non_finite_norms_are_never_taken(norm: float) -> None:
    guard = SpikeGuard(warmup=10**9)
    assert not guard.accepts(norm)
    assert guard.num_in_a_row == 1


def test_a_norm_that_has_moved_for_good_is_taken_in_the_end() -> None:
    guard = SpikeGuard(factor=5.0, warmup=1, patience=3)
    assert guard.accepts(1.0) and guard.accepts(1.0)
    assert [guard.accepts(100.0) for _ in range(5)] == [False, False, False, True, True]


class TwoNetworks(LinearObjective):
    """The second network learns twice, then the model once; what was asked for is kept."""

    def __init__(self, model: torch.nn.Module, second: torch.nn.Module) -> None:
        super().__init__(model)
        self.second = LinearObjective(second, poisoned=1)
        self.done: list[str] = []

    def phases(self, batch: Pairs) -> Iterator[Phase]:
        for step in (0, 1):
            yield Phase(part="second", loss=lambda s=step: self.second.loss(self.second.batch(s)))
            self.done.append("second")
        yield Phase(part="", loss=lambda: self.loss(batch))
        self.done.append("model")


def test_a_step_of_several_updates_keeps_them_apart() -> None:
    config = OptimizerConfig(learning_rate=0.05)
    state, alone = toy_state(config), toy_state(config)
    second = toy_model()
    state.others["second"] = Part(model=second, optimizers=build_optimizers(second, config))
    objective = TwoNetworks(state.model, second)
    report = training_step(objective, objective.batch(0), state, max_grad_norm=1.0)
    single = LinearObjective(alone.model)
    expected = training_step(single, single.batch(0), alone, max_grad_norm=1.0)
    assert objective.done == ["second", "second", "model"] and state.step == 1
    # The model's own numbers are those of a step without company.
    assert (report.loss, report.grad_norm) == (expected.loss, expected.grad_norm)
    assert (report.num_items, state.num_items) == (16, 16)
    own, theirs = state.model.state_dict(), alone.model.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    # The poisoned update of the second network is refused, by a guard of its own.
    guard = state.others["second"].guard
    assert (guard.num_accepted, guard.num_skipped, state.guard.num_skipped) == (1, 1, 0)
    assert not report.skipped and "grad_norm_second" in report.parts
