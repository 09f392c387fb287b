"""Two and four processes against one: the same losses, the same weights, whatever lies where."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from petzval.errors import ConfigError
from petzval.pretrain.layout import denoiser_layout
from petzval.training.checkpoint import list_checkpoints, load_checkpoint, load_weights
from petzval.training.loop import train
from petzval.training.metrics import read_metrics
from petzval.training.parallel import ParallelConfig, parallelize
from petzval.training.ranks import Ranks
from petzval.training.state import RunState
from petzval.training.step import training_step
from petzval.training.weighting import Weighting, weighted
from tests.training.denoising import (
    AllRanks,
    DenoisingObjective,
    denoiser,
    denoiser_steps,
    look,
    state_of,
)
from tests.training.launch import launch, logs
from tests.training.ranked import UNEVEN, take_steps, weights_of
from tests.training.shared import (
    SharedObjective,
    WholeObjective,
    adamw,
    deal,
    even,
    item_losses,
    loop,
    losses_of,
    muon,
    small_model,
    small_state,
)


def run_one(folder: Path, num_steps: int) -> RunState:
    """One process on the whole batch."""
    state = small_state(muon())
    train(SharedObjective(state.model, 0, even(1)), state, loop(num_steps, 10), folder)
    return state


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks left, and one process, and two ranks that went on from either."""
    folder = tmp_path_factory.mktemp("ranked")
    both = ["equality", "gradients"]
    only_two = ["spoilt", "second_leg", "third_leg", "terminated", "denoising", "evaluated"]
    codes = launch(
        folder,
        (4, [*both, "replicated", "first_leg"], "never"),
        (1, ["alone"], "never"),
        (2, [*both, *only_two], "never"),
    )
    assert codes == [[0] * 4, [0], [0] * 2], logs(folder)
    return folder


def result_of(folder: Path, program: str) -> dict[str, Any]:
    return json.loads((folder / f"{program}.json").read_text())


def tensors_of(folder: Path, program: str, prefix: str = "") -> dict[str, Tensor]:
    stored = load_file(folder / f"{program}.safetensors")
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor], limit: float = 1e-5) -> None:
    assert left.keys() == right.keys() and left
    for name, value in left.items():
        assert float((value - right[name]).abs().max()) <= limit, name


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("name", "weighting"), [("adamw", "sample"), ("muon", "token")])
def test_twenty_steps_equal_one_process(
    ranked: Path, size: int, name: str, weighting: Weighting
) -> None:
    state = small_state(adamw() if name == "adamw" else muon())
    objective = WholeObjective(state.model, UNEVEN[size], weighting)
    losses = [
        training_step(objective, objective.batch(step), state, max_grad_norm=0.5).loss
        for step in range(20)
    ]
    assert result_of(ranked, f"equality{size}")[name] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    assert_close(tensors_of(ranked, f"equality{size}", f"{name}."), weights_of(state))


def test_two_copies_of_a_sharded_model_equal_one_process(ranked: Path) -> None:
    state = small_state(muon())
    losses = take_steps(state, SharedObjective(state.model, 0, even(1)), 20, "rank")
    assert result_of(ranked, "replicated4")["losses"] == pytest.approx(losses, rel=1e-5)
    assert_close(tensors_of(ranked, "replicated4"), weights_of(state))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("by_item", [False, True])
@pytest.mark.parametrize("weighting", ["sample", "rank", "token"])
def test_gradients_of_unequal_batches(
    ranked: Path, size: int, by_item: bool, weighting: Weighting
) -> None:
    model = small_model()
    objective = WholeObjective(model, UNEVEN[size], weighting)
    objective.loss(objective.batch(3)).value.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close(tensors_of(ranked, f"gradients{size}", f"{weighting}.{by_item}."), expected, 1e-6)


def test_the_weightings_differ_and_are_the_same_in_one_process() -> None:
    samples = deal(3, UNEVEN[4])
    items = item_losses(small_model(), samples)
    whole = [
        WholeObjective(small_model(), UNEVEN[4], weighting).loss(samples).value
        for weighting in ("sample", "rank", "token")
    ]
    assert len({round(float(value.detach()), 4) for value in whole}) == 3
    objective = SharedObjective(small_model(), 0, even(1), by_item=True)
    loss = objective.loss(objective.batch(3))
    again, _ = weighted(loss, "sample", Ranks())
    assert torch.allclose(again, loss.value, rtol=1e-6)
    assert loss.items is not None and items.shape == (24,)
    equal = dataclasses.replace(loss, items=None)
    assert weighted(equal, "token", Ranks())[0] == loss.value


def test_a_poisoned_rank_and_a_spike_are_skipped_by_all(ranked: Path) -> None:
    result = result_of(ranked, "spoilt2")
    assert result["guards"][0] == result["guards"][1]
    assert (result["guards"][0]["num_skipped"], result["guards"][0]["num_accepted"]) == (2, 18)
    state = small_state(adamw())
    objective = WholeObjective(state.model, even(2), "rank", {7: float("nan"), 12: 1e4})
    for step in range(20):
        training_step(objective, objective.batch(step), state, max_grad_norm=0.5)
    assert state.guard.num_skipped == 2
    assert_close(tensors_of(ranked, "spoilt2"), weights_of(state))


def test_from_four_ranks_to_two_to_one(ranked: Path, tmp_path: Path) -> None:
    whole = run_one(tmp_path / "whole", 30)
    expected = losses_of(tmp_path / "whole")
    assert losses_of(ranked / "from_none4") == pytest.approx(expected, rel=1e-5)
    # Two ranks log what they did themselves: the twenty steps behind the inherited ten.
    assert losses_of(ranked / "from_four") == pytest.approx(expected[10:], rel=1e-5)
    assert "resumed at step 10 from step-00000010" in result_of(ranked, "second_leg2")["lines"]
    assert_close(tensors_of(ranked, "second_leg2"), weights_of(whole))
    last = ranked / "from_four" / "checkpoints" / "step-00000020"
    shutil.copytree(last, tmp_path / "one" / "checkpoints" / last.name)
    state = run_one(tmp_path / "one", 30)
    assert losses_of(tmp_path / "one") == pytest.approx(expected[20:], rel=1e-5)
    assert_close(weights_of(state), weights_of(whole))


def test_from_one_process_to_two_ranks(ranked: Path, tmp_path: Path) -> None:
    whole = run_one(tmp_path, 30)
    assert losses_of(ranked / "from_one") == pytest.approx(losses_of(tmp_path)[10:], rel=1e-5)
    assert_close(tensors_of(ranked, "third_leg2"), weights_of(whole))


def test_the_sampler_gets_its_state_back_on_every_rank(ranked: Path) -> None:
    assert result_of(ranked, "second_leg2")["origins"] == [{"seed": 7, "loaded": True}] * 2


def test_a_sharded_checkpoint_is_json_and_safetensors(ranked: Path) -> None:
    kept = list_checkpoints(ranked / "from_none4" / "checkpoints")
    assert [path.name[-2:] for path in kept] == ["10", "20", "30"]
    assert {path.suffix for path in kept[0].iterdir()} == {".safetensors", ".json"}
    state = small_state(adamw())
    load_weights(kept[1], state)
    other = small_state(muon())
    load_checkpoint(kept[1], other)
    assert_close(weights_of(state), weights_of(other), 0)
    assert (state.step, other.step, other.num_items) == (0, 20, 480)


def test_rows_of_the_log_count_all_ranks(ranked: Path, tmp_path: Path) -> None:
    run_one(tmp_path, 30)
    for row, alone in zip(
        read_metrics(ranked / "from_four" / "metrics.jsonl"),
        read_metrics(tmp_path / "metrics.jsonl")[10:],
        strict=True,
    ):
        names = {name for name in alone if name.startswith("loss_t")}
        assert len(names) > 3 and names <= row.keys()
        for name in names:
            assert row[name] == pytest.approx(alone[name], rel=1e-5)
        both = (row["loss_bucket_of_0"] + row["loss_bucket_of_1"]) / 2
        assert both == pytest.approx(row["loss"], rel=1e-5)
        assert row["rank"] == 0.5 and row["num_items"] == alone["num_items"]
        assert row["images_per_second"] * row["seconds_per_step"] == pytest.approx(24)
        assert row["mfu"] * row["seconds_per_step"] == pytest.approx(24 * 1e6 / (2 * 1e9))
        assert 0 <= row["data_wait"] < 1


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(ranked: Path) -> None:
    [path] = list_checkpoints(ranked / "terminated" / "checkpoints")
    assert result_of(ranked, "terminated2")["ends"] == [["interrupted", 6, str(path)]] * 2
    assert json.loads((ranked / "terminated" / "heartbeat.json").read_text())["step"] >= 1


def test_the_denoiser_over_two_ranks_one_without_text(ranked: Path) -> None:
    model = denoiser()
    state = state_of(model, Ranks(), None)
    losses = denoiser_steps(state, AllRanks(model, 2))
    result = result_of(ranked, "denoising2")
    weights = dict(model.state_dict())
    for name in ("float32", "recomputed"):
        assert result[name] == pytest.approx(losses, rel=1e-5)
        assert_close(tensors_of(ranked, "denoising2", f"{name}."), weights)
    assert result["bfloat16"] == pytest.approx(losses, rel=2e-2)
    assert result["bfloat16"] != pytest.approx(losses, rel=1e-5)
    stored = tensors_of(ranked, "denoising2", "bfloat16.")
    assert {value.dtype for value in stored.values()} == {torch.float32}


def test_averages_are_looked_at_between_steps(ranked: Path) -> None:
    model = denoiser()
    state = state_of(model, Ranks(), None)
    before = look(state)
    objective = AllRanks(model, 2)
    after = before
    for step in range(3):
        training_step(objective, objective.batch(step), state, max_grad_norm=1.0)  # type: ignore[arg-type]
        if step == 1:
            after = look(state)
    seen = tensors_of(ranked, "evaluated2")
    assert torch.allclose(seen.pop("before"), before, atol=1e-5)
    assert torch.allclose(seen.pop("after"), after, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)
    assert_close(seen, dict(model.state_dict()))


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(recompute="blocks"),
        ParallelConfig(recompute="blocks", recompute_every=2),
        ParallelConfig(recompute="operations"),
    ],
)
def test_recomputing_changes_no_bit(config: ParallelConfig) -> None:
    expected, weights = one_process(ParallelConfig())
    losses, others = one_process(config)
    assert losses == expected
    assert_close(weights, others, 0)


# Torch warns itself: its tracer looks at every tensor's `grad`, its compiler uses its old one.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Detected that context_fn")
@pytest.mark.compile
@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(compile="static"),
        ParallelConfig(compile="static", recompute="operations"),
        ParallelConfig(compile="dynamic", recompute="blocks", recompute_every=2),
    ],
)
def test_compiling_keeps_the_loss(config: ParallelConfig) -> None:
    expected, weights = one_process(ParallelConfig())
    losses, others = one_process(config)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert_close(weights, others, 1e-4)


@pytest.mark.compile
def test_compiling_sharded_blocks_keeps_the_loss(tmp_path: Path) -> None:
    assert launch(tmp_path, (2, ["compiled"], "never")) == [[0, 0]], logs(tmp_path)
    model = denoiser()
    losses = denoiser_steps(state_of(model, Ranks(), None), AllRanks(model, 2))
    assert result_of(tmp_path, "compiled2")["losses"] == pytest.approx(losses, rel=1e-5)
    # Where a gradient is nearly zero, AdamW makes a whole step of its rounding.
    assert_close(tensors_of(tmp_path, "compiled2"), dict(model.state_dict()), 1e-4)


def one_process(config: ParallelConfig) -> tuple[list[float], dict[str, Tensor]]:
    model = denoiser()
    root = parallelize(model, config, Ranks(), denoiser_layout(model.config))
    assert root is None
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in denoiser().named_parameters()]
    losses = denoiser_steps(state_of(model, Ranks(), None), DenoisingObjective(model, 0, 2))
    return losses, dict(model.state_dict())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="replicate"):
        ParallelConfig(replicate=0)
    with pytest.raises(ConfigError, match="recompute_every"):
        ParallelConfig(recompute_every=0)
    with pytest.raises(ConfigError, match="timeout_minutes"):
        ParallelConfig(timeout_minutes=0.0)
    with pytest.raises(ConfigError, match="no blocks"):
        parallelize(small_model(), ParallelConfig(compile="static"), Ranks())
