"""The whole road on toys: train, resume, export, draw."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from petzval.config import from_mapping, to_mapping
from petzval.errors import ConfigError, TrainingError
from petzval.pretrain import results
from petzval.pretrain.export import ExportConfig, export_checkpoint
from petzval.pretrain.recipes import RECIPES, recipe_by_name
from petzval.pretrain.run import run
from petzval.training.metrics import read_metrics
from petzval.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_are_values_that_json_can_hold(name: str) -> None:
    recipe = recipe_by_name(name)
    stored = json.loads(json.dumps(to_mapping(recipe)))
    assert from_mapping(type(recipe), stored, where=name) == recipe
    with pytest.raises(ConfigError, match="unknown setting 'learning'"):
        from_mapping(type(recipe), {**stored, "learning": 1}, where=name)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="mini_huge") as caught:
        recipe_by_name("mini_huge")
    assert "mini_denoiser" in caught.value.hint


def test_runs_leave_results_logs_and_pictures(smoke_runs: Path) -> None:
    for part in ("vae", "language_model", "denoiser"):
        assert results.has_result(smoke_runs / part)
        assert (
            json.loads((smoke_runs / part / "recipe.json").read_text())["recipe"] == f"smoke_{part}"
        )
    assert len(list((smoke_runs / "vae" / "grids").glob("*.png"))) == 1
    names = {path.name.split("-")[0] for path in (smoke_runs / "denoiser" / "grids").glob("*.png")}
    assert names == {"low", "mixed"}
    rows = read_metrics(smoke_runs / "language_model" / "metrics.jsonl")
    assert {"final_turn_en", "final_turn_es"} <= rows[-1].keys()


def test_the_second_stage_starts_from_the_first(smoke_runs: Path) -> None:
    low = load_file(
        sorted((smoke_runs / "denoiser/low/checkpoints").iterdir())[-1] / "model.safetensors"
    )
    mixed = load_file(
        sorted((smoke_runs / "denoiser/mixed/checkpoints").iterdir())[-1] / "model.safetensors"
    )
    change = torch.cat([(low[k] - mixed[k]).flatten() for k in low]).abs().mean()
    assert 0 < float(change) < 0.02


def test_running_again_changes_nothing(smoke_runs: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(smoke_runs, runs)
    before = results.fingerprint(runs / "denoiser")
    lines: list[str] = []
    run("smoke_denoiser", data_folder=tmp_path, run_folder=runs / "denoiser", report=lines.append)
    assert results.fingerprint(runs / "denoiser") == before
    assert any(line.startswith("resumed at step 4") for line in lines)
    assert not any(line.startswith("step ") for line in lines)


def test_what_is_missing_is_named(tmp_path: Path, golden_checkpoint: Path) -> None:
    with pytest.raises(TrainingError, match="no finished network") as caught:
        run(
            "smoke_denoiser",
            data_folder=tmp_path,
            run_folder=tmp_path / "denoiser",
            tokenizer_folder=golden_checkpoint / "tokenizer",
        )
    assert "petzval pretrain" in caught.value.hint


def test_the_export_is_a_checkpoint_with_its_history(smoke_runs: Path) -> None:
    folder = smoke_runs / "export"
    checkpoint = Checkpoint.open(folder)
    trained = results.load_denoiser(smoke_runs / "denoiser").state_dict()
    exported = checkpoint.load_denoiser(torch.float32).state_dict()
    assert trained.keys() == exported.keys()
    assert all(torch.equal(trained[k].bfloat16().float(), exported[k]) for k in trained)
    bn = results.load_autoencoder(smoke_runs / "vae").bn
    assert torch.equal(checkpoint.load_vae().bn.running_var, bn.running_var)
    assert json.loads((folder / "petzval.json").read_text()) == {
        "name": "smoke", "steps": 2, "guidance": 3.0, "base": 128,
    }  # fmt: skip
    recorded = {p.relative_to(folder).as_posix() for p in (folder / "training").rglob("*.json*")}
    assert {"training/vae/recipe.json", "training/denoiser/low/metrics.jsonl"} <= recorded


def test_large_networks_are_split_and_extra_files_go_along(
    smoke_runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "NOTICE").write_text("thanks")
    out = export_checkpoint(
        smoke_runs,
        tmp_path / "out",
        ExportConfig(),
        data_folder=tmp_path / "data",
        extra_files={"README.md": "a card"},
        max_shard_bytes=50_000,
    )
    shards = list((out / "transformer").glob("*.safetensors"))
    assert len(shards) > 1 and max(path.stat().st_size for path in shards) < 120_000
    assert (out / "README.md").read_text() == "a card"
    assert (out / "NOTICE").read_text() == "thanks"
    Checkpoint.open(out)


def test_a_tokenizer_of_another_size_is_refused(smoke_runs: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(smoke_runs, runs)
    config = json.loads((runs / "language_model/result/config.json").read_text())
    weights = runs / "language_model/result/model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
    save_file(tensors, weights)
    config["vocab_size"] -= 1
    (runs / "language_model/result/config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match="ids"):
        export_checkpoint(runs, tmp_path / "out", ExportConfig())


def test_training_can_go_on_from_an_exported_checkpoint(smoke_runs: Path, tmp_path: Path) -> None:
    runs, start = tmp_path / "runs", tmp_path / "start"
    for part in ("vae", "language_model", "latents", "tokenizer"):
        shutil.copytree(smoke_runs / part, runs / part)
    shutil.copytree(smoke_runs / "export", start)
    # A matrix that no initialisation would give: the exported one with its sign turned.
    file, name = start / "transformer/diffusion_pytorch_model.safetensors", "txt_in.weight"
    tensors = load_file(file)
    tensors[name] = -tensors[name]
    turned = tensors[name].float().clone()
    save_file(tensors, file)
    run(
        "smoke_denoiser",
        data_folder=tmp_path,
        run_folder=runs / "denoiser",
        start=start,
        report=lambda line: None,
    )
    begun = load_file(_last(runs / "denoiser" / "low"))[name]
    assert (begun - turned).abs().mean() < 0.1 * (begun + turned).abs().mean()


def test_an_exported_checkpoint_can_be_taken_apart_into_runs(
    smoke_runs: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    unpack = tmp_path / "runs" / "unpack"
    start = smoke_runs / "export"
    run("mini_unpack", data_folder=tmp_path, run_folder=unpack, start=start, report=lines.append)
    runs = unpack.parent
    assert sorted(path.name for path in runs.iterdir()) == [
        "denoiser", "language_model", "tokenizer", "vae",
    ]  # fmt: skip
    assert len(lines) == 4
    assert results.fingerprint(runs / "vae") == results.fingerprint(smoke_runs / "vae")
    trained = results.load_encoder(smoke_runs / "language_model", (0, 1)).state_dict()
    unpacked = results.load_encoder(runs / "language_model", (0, 1)).state_dict()
    assert all(torch.equal(trained[k].bfloat16().float(), unpacked[k]) for k in trained)
    norm = results.load_final_norm(smoke_runs / "language_model")
    assert torch.equal(results.load_final_norm(runs / "language_model"), norm.bfloat16().float())
    assert (runs / "denoiser/started_from/low/metrics.jsonl").is_file()
    # What is there already stays as it is.
    run("mini_unpack", data_folder=tmp_path, run_folder=unpack, start=start, report=lines.append)
    assert len(lines) == 4


def test_what_is_taken_apart_can_be_trained_and_exported(smoke_runs: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    start = smoke_runs / "export"
    shutil.copytree(smoke_runs / "latents", runs / "latents")
    for recipe in ("mini_unpack", "smoke_denoiser"):
        folder = runs / recipe.partition("_")[2]
        run(recipe, data_folder=tmp_path, run_folder=folder, start=start, report=lambda line: None)
    run("smoke_export", data_folder=tmp_path, run_folder=runs / "export", report=lambda line: None)
    Checkpoint.open(runs / "export")
    card = (runs / "export" / "README.md").read_text()
    assert f"smoke_denoiser --start {start}" in card
    assert "started_from/low: 4 steps" in card
    record = runs / "export" / "training" / "denoiser" / "started_from"
    assert (record / "recipe.json").is_file() and (record / "low" / "metrics.jsonl").is_file()


def _last(run_folder: Path) -> Path:
    return sorted((run_folder / "checkpoints").iterdir())[-1] / "model.safetensors"


def test_a_start_that_does_not_fit_is_refused(
    smoke_runs: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="another size"):
        run(
            "smoke_denoiser",
            data_folder=tmp_path,
            run_folder=smoke_runs / "other_denoiser",
            start=golden_checkpoint,
            report=lambda line: None,
        )
    with pytest.raises(TrainingError, match="trains no denoiser"):
        run(
            "smoke_vae",
            data_folder=tmp_path,
            run_folder=tmp_path / "vae",
            start=golden_checkpoint,
            report=lambda line: None,
        )


def torchrun(command: list[str], log: Path) -> int:
    """Two processes on this machine, with a port of their own."""
    root = Path(__file__).resolve().parents[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with log.open("w") as file:
        return subprocess.run(
            [*launcher, "-m", "petzval", *command],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=540,
            check=False,
        ).returncode


def test_torchrun_trains_a_denoiser_over_two_processes(smoke_runs: Path, tmp_path: Path) -> None:
    for name in ("tokenizer", "vae", "language_model", "latents"):
        (tmp_path / name).symlink_to(smoke_runs / name)
    folder, log = tmp_path / "denoiser", tmp_path / "log.txt"
    command = ["pretrain", "smoke_denoiser", "--out", str(folder), "--threads", "1"]
    assert torchrun([*command, "--device", "cpu"], log) == 0, log.read_text()
    lines = log.read_text().splitlines()
    assert lines.count(str(folder)) == 1, "one process speaks"
    assert json.loads((folder / "recipe.json").read_text())["session"]["processes"] == 2
    assert (
        results.load_denoiser(folder).config
        == results.load_denoiser(smoke_runs / "denoiser").config
    )
    for stage in ("low", "mixed"):
        rows = read_metrics(folder / stage / "metrics.jsonl")
        assert [row["step"] for row in rows if "loss" in row] == [2, 4]
        assert any(name.startswith("loss_bucket_") for name in rows[-1])
        assert (folder / stage / "shards-1.jsonl").is_file()
    assert len(list((folder / "grids").glob("*.png"))) == 2
    # One process goes on with what two have left: nothing is to be done.
    run(
        "smoke_denoiser",
        data_folder=tmp_path / "none",
        run_folder=folder,
        report=lambda line: None,
    )


def test_torchrun_is_refused_where_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="trains nothing") as caught:
        run("smoke_latents", data_folder=tmp_path, run_folder=tmp_path / "latents")
    assert "petzval pretrain smoke_latents" in caught.value.hint
