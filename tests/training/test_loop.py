"""When a run logs, saves and stops; and that it goes on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from petzval.training import loop
from petzval.training.checkpoint import list_checkpoints
from petzval.training.loop import LoopConfig, progress, train
from petzval.training.metrics import read_metrics
from petzval.training.objective import Loss
from petzval.training.optimizer import OptimizerConfig
from petzval.training.pictures import save_grid
from petzval.training.state import RunState
from tests.training.events import pictures
from tests.training.toy import LinearObjective, same_state, toy_state

CONFIG = LoopConfig(
    optimizer=OptimizerConfig(kind="muon", learning_rate=0.02, warmup_steps=3, decay="cosine"),
    num_steps=12,
    log_every=4,
)


def run(folder: Path, config: LoopConfig = CONFIG, **options: object) -> tuple[RunState, str]:
    state = toy_state(config.optimizer)
    outcome = train(LinearObjective(state.model), state, config, folder, **options)  # type: ignore[arg-type]
    return state, outcome.reason


def test_a_run_to_its_end(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(state: RunState) -> dict[str, float | Path]:
        seen.append(state.step)
        save_grid(tmp_path / "grid.png", [torch.zeros(3, 8, 8)], 1)
        return {"looked": 1.0, "grid": tmp_path / "grid.png"}

    lines: list[str] = []
    state, reason = run(tmp_path, callbacks=[look], report=lines.append)
    assert (reason, state.step, seen, len(lines)) == ("steps", 12, [12], 3)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 12, 12]
    assert (rows[-1]["looked"], "grid" in rows[-1]) == (1.0, False)
    assert [step for step, _ in pictures(tmp_path, "grid")] == [12]
    assert rows[2]["loss"] < rows[0]["loss"] and rows[0]["images_per_second"] > 0
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step-00000012"


def test_a_signal_saves_and_resuming_is_bit_equal(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    interrupting = dataclasses.replace(CONFIG, callback_minutes=1e-9)

    def interrupt(state: RunState) -> dict[str, float]:
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    first, reason = run(tmp_path / "cut", interrupting, callbacks=[interrupt])
    assert (reason, first.step) == ("interrupted", 5)
    assert signal.getsignal(signal.SIGTERM) is before
    second, reason = run(tmp_path / "cut")
    assert reason == "steps" and same_state(whole, second)


KILLED = """
import os
from pathlib import Path
from tests.training.test_loop import CONFIG, dataclasses, run

config = dataclasses.replace(CONFIG, save_minutes=1e-9, callback_minutes=1e-9)
def die(state):
    if state.step == 7:
        os.kill(os.getpid(), 9)
    return {}
run(Path(%r), config, callbacks=[die])
"""


def test_a_killed_run_goes_on_bit_equal(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED % str(tmp_path / "killed")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list_checkpoints(tmp_path / "killed" / "checkpoints")
    whole, _ = run(tmp_path / "whole")
    resumed, _ = run(tmp_path / "killed")
    assert same_state(whole, resumed)
    steps = [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_time_ends_a_run_and_moves_the_learning_rate(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_steps=10**9, minutes=1e-3)
    state, reason = run(tmp_path, config)
    assert reason == "minutes" and 0 < state.step < 10**6
    assert progress(state, config) == 1.0
    half = dataclasses.replace(config, minutes=state.seconds / 60 * 2)
    assert progress(state, half) == pytest.approx(0.5)


def test_a_finished_run_is_not_touched_and_restarting_begins_anew(tmp_path: Path) -> None:
    run(tmp_path)
    before = sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors"))
    _, reason = run(tmp_path)
    assert reason == "steps"
    assert sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")) == before
    state, _ = run(tmp_path, dataclasses.replace(CONFIG, num_steps=3), resume=False)
    assert state.step == 3
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000003"]


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    inline, _ = run(tmp_path / "inline")
    workers, _ = run(tmp_path / "workers", dataclasses.replace(CONFIG, num_workers=1))
    assert same_state(inline, workers)


def test_a_window_s_batches_are_made_by_one_worker_and_a_resumed_run_may_cut_one() -> None:
    class Drawn:
        batches_per_window = 4

        def batch(self, step: int) -> int:
            return step

        def loss(self, batch: int) -> Loss:
            raise AssertionError("nothing is learned here")

    windows = loop._Windows(Drawn(), range(6, 15))
    assert [windows[n] for n in range(len(windows))] == [[6, 7], [8, 9, 10, 11], [12, 13, 14]]
    config = dataclasses.replace(CONFIG, num_steps=15, num_workers=2)
    assert [make() for make in loop._makers(Drawn(), 6, config)] == list(range(6, 15))
