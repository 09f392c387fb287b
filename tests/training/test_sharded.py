"""Checkpoints written behind the training's back: whole or absent, whoever dies when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from petzval.errors import TrainingError
from petzval.training.checkpoint import load_checkpoint, load_weights
from tests.training.launch import launch, logs
from tests.training.shared import adamw, losses_of, muon, small_state


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that died twice while it saved step 8, beside one that did not."""
    folder = tmp_path_factory.mktemp("survived")
    writing, renaming, last = launch(
        folder,
        (2, ["killed"], "writing"),
        (2, ["seen", "killed"], "renaming"),
        (2, ["seen", "killed", "uninterrupted"], "never"),
    )
    assert (writing[1], renaming[0], last) == (-9, -9, [0, 0]), logs(folder)
    assert writing[0] > 0 and renaming[1] > 0, "the rank that was left must end too"
    return folder


def test_no_half_checkpoint_is_ever_picked(survived: Path) -> None:
    seen = json.loads((survived / "seen2.json").read_text())
    assert seen == {"picked": ["step-00000004"], "half": True}


def test_a_run_killed_while_saving_goes_on_bit_equal(survived: Path) -> None:
    assert losses_of(survived / "killed") == losses_of(survived / "uninterrupted")
    assert len(losses_of(survived / "killed")) == 12
    left = load_file(survived / "killed2.safetensors")
    right = load_file(survived / "uninterrupted2.safetensors")
    assert all(value.equal(right[name]) for name, value in left.items())


def test_what_the_dead_left_is_cleared_away(survived: Path) -> None:
    names = {path.name for path in (survived / "killed" / "checkpoints").iterdir()}
    assert names == {"step-00000004", "step-00000008", "step-00000012"}
    kept = {path.name for path in (survived / "killed/checkpoints/step-00000008").iterdir()}
    assert "half.safetensors" not in kept and len(kept) == 3


@pytest.fixture
def whole(survived: Path, tmp_path: Path) -> Path:
    """A copy of a sharded checkpoint that a test may damage."""
    return Path(
        shutil.copytree(
            survived / "uninterrupted/checkpoints/step-00000012", tmp_path / "step-00000012"
        )
    )


def test_a_checkpoint_of_other_settings_says_so(whole: Path) -> None:
    state = small_state(muon())
    assert load_checkpoint(whole, state)
    assert state.step == 12
    state.config_hash = "another"
    assert not load_checkpoint(whole, state)


def test_another_optimizer_or_model_is_refused(whole: Path) -> None:
    with pytest.raises(TrainingError, match="Muon"):
        load_checkpoint(whole, small_state(adamw()))
    other = small_state(muon())
    del other.model[4]  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="unknown tensor"):
        load_checkpoint(whole, other)


@pytest.mark.parametrize("damage", ["cut", "missing", "shape", "state", "pickle"])
def test_damaged_files_are_refused_and_none_is_executed(whole: Path, damage: str) -> None:
    shard = whole / "shard-00002-model-00001-of-00001.safetensors"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:100])
    elif damage == "missing":
        shard.unlink()
    elif damage == "shape":
        cut = {name: v[:1].clone() if v.ndim else v for name, v in load_file(shard).items()}
        save_file(cut, shard)
    elif damage == "state":
        (whole / "state.json").write_text('{"format": 2, ')
    else:
        shard.write_bytes(b"\x80\x04cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(TrainingError) as caught:
        load_checkpoint(whole, small_state(muon()))
    assert str(whole) in caught.value.message and caught.value.hint
    if damage in ("cut", "missing", "shape", "pickle"):
        with pytest.raises(TrainingError):
            load_weights(whole, small_state(muon()))
    assert not Path("executed").exists()
