"""A run's state on disk: whole or absent, and the next step after it the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from petzval.errors import TrainingError
from petzval.training import folders
from petzval.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from petzval.training.optimizer import OptimizerConfig
from petzval.training.state import RunState
from petzval.training.step import training_step
from tests.training.toy import LinearObjective, same_state, toy_state

MUON = OptimizerConfig(kind="muon", learning_rate=0.02)


def advance(state: RunState, num_steps: int) -> None:
    objective = LinearObjective(state.model)
    for _ in range(num_steps):
        training_step(objective, objective.batch(state.step), state, max_grad_norm=1.0)


@pytest.mark.parametrize("config", [MUON, OptimizerConfig(learning_rate=0.02)])
def test_going_on_from_a_checkpoint_is_bit_equal(tmp_path: Path, config: OptimizerConfig) -> None:
    whole = toy_state(config)
    advance(whole, 12)
    first = toy_state(config)
    advance(first, 5)
    path = save_checkpoint(tmp_path, first)
    second = toy_state(config)
    advance(second, 2)
    load_checkpoint(path, second)
    assert second.step == 5
    advance(second, 7)
    assert same_state(whole, second)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    state = toy_state(MUON)
    for _ in range(4):
        advance(state, 1)
        save_checkpoint(tmp_path, state, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]


def test_what_a_dead_save_has_left_goes_with_the_next_one(tmp_path: Path) -> None:
    """It may be as large as the disk has room for, and its step may never be saved again."""
    left = tmp_path / ".incomplete-00000007" / "model.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    state = toy_state(MUON)
    advance(state, 1)
    save_checkpoint(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_save_that_dies_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = toy_state(MUON)
    advance(state, 1)
    good = save_checkpoint(tmp_path, state)
    advance(state, 1)

    def die(path: Path) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(folders, "flush", die)
    with pytest.raises(OSError, match="full"):
        save_checkpoint(tmp_path, state)
    assert list_checkpoints(tmp_path) == [good]
    monkeypatch.undo()
    assert len({*list_checkpoints(tmp_path), save_checkpoint(tmp_path, state)}) == 2


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, toy_state(MUON))
    other = toy_state(MUON)
    other.model = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 4))
    with pytest.raises(TrainingError, match="shape"):
        load_checkpoint(path, other)
    other.model = torch.nn.Linear(4, 4)
    with pytest.raises(TrainingError, match=r"0\.bias"):
        load_checkpoint(path, other)


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, toy_state(MUON))
    with pytest.raises(TrainingError, match="AdamW"):
        load_checkpoint(path, toy_state(OptimizerConfig()))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, toy_state(MUON))
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainingError, match=name):
        load_checkpoint(path, toy_state(MUON))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, toy_state(MUON))
    description = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(TrainingError, match="format 99"):
        load_checkpoint(path, toy_state(MUON))
