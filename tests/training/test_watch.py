"""Signs of life; and launches that cannot be."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from petzval.errors import ConfigError, TerminatedError, TrainingError
from petzval.training.checkpoint import list_checkpoints
from petzval.training.loop import LoopConfig, train
from petzval.training.optimizer import OptimizerConfig
from petzval.training.ranks import join_ranks, launched_first, launched_size
from petzval.training.watch import Heartbeat, interruption, stop_signal
from tests.training.toy import LinearObjective, toy_state


def test_a_heart_beats_no_more_often_than_asked(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, every=3600.0)
    heart.beat(3)
    heart.beat(4)
    content = json.loads(heart.path.read_text())
    assert (content["step"], content["pid"]) == (3, os.getpid())
    Heartbeat(tmp_path, every=0.0).beat(5)
    assert json.loads(heart.path.read_text())["step"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat.json"]


def test_other_threads_are_never_asked_to_stop() -> None:
    seen: list[bool] = []

    def enter() -> None:
        with stop_signal() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_signal_decides_how_an_interruption_is_told() -> None:
    for number, kind in ((signal.SIGTERM, TerminatedError), (signal.SIGINT, KeyboardInterrupt)):
        with stop_signal() as stop:
            signal.raise_signal(number)
        assert stop.is_set()
        assert type(interruption()) is kind


def test_without_torchrun_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched_size() == 1 and launched_first()
    with join_ranks(torch.device("cpu")) as (ranks, device):
        assert (ranks.size, ranks.mesh, device.type) == (1, None, "cpu")
    assert not torch.distributed.is_initialized()


def test_a_launch_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(TrainingError, match="do not divide into 2"),
        join_ranks(torch.device("cpu"), replicate=2),
    ):
        pass
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrainingError, match="incomplete"), join_ranks(torch.device("cpu")):
        pass


def test_milestones_stay_beside_the_newest(tmp_path: Path) -> None:
    config = LoopConfig(
        optimizer=OptimizerConfig(), num_steps=11, milestone_steps=4, keep=1, save_minutes=1e-9
    )
    state = toy_state(config.optimizer)
    train(LinearObjective(state.model), state, config, tmp_path)
    kept = [path.name[-2:] for path in list_checkpoints(tmp_path / "checkpoints")]
    assert kept == ["04", "08", "11"]
    with pytest.raises(ConfigError, match="milestone_steps"):
        LoopConfig(milestone_steps=0)


def test_changed_settings_are_reported_and_go_on(tmp_path: Path) -> None:
    lines: list[str] = []
    for number, name in enumerate(("one", "one", "another")):
        config = LoopConfig(optimizer=OptimizerConfig(), num_steps=2 + number)
        state = toy_state(config.optimizer)
        state.config_hash = name
        train(LinearObjective(state.model), state, config, tmp_path, report=lines.append)
    assert [line for line in lines if "settings" in line] == [
        "the settings of the run have changed since that checkpoint"
    ]
