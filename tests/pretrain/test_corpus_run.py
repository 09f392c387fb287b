"""From shards to a checkpoint that draws, in one process and in two; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from petzval.data.bucket_sampler import LENS_BATCH_SIZES
from petzval.errors import CheckpointError, ConfigError, DataError, PetzvalError, TrainingError
from petzval.models.mmdit import MMDiT
from petzval.pretrain.lens_recipes import (
    lens_base_stage1,
    lens_base_stage2,
    lens_base_stage2_fast,
    toy_1b,
)
from petzval.pretrain.run import run
from petzval.pretrain.session import Session
from petzval.training.metrics import read_metrics
from petzval.training.parallel import Compile
from petzval.training.ranks import Ranks
from petzval.weights.checkpoint import Checkpoint
from tests.pretrain.corpus import make_shards, train_some
from tests.training.events import pictures
from tests.training.launch import launch, logs
from tests.training.ranked import corpus_steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_shards(folder)
    return folder


def test_shards_become_a_checkpoint_that_draws(folder: Path, golden_checkpoint: Path) -> None:
    out = run(
        "smoke_corpus",
        data_folder=folder / "shards",
        run_folder=folder / "smoke",
        model=golden_checkpoint,
        latents=folder / "latents",
        report=lambda line: None,
    )
    checkpoint = Checkpoint.open(out / "checkpoint")
    assert checkpoint.denoiser_config.num_layers == 2
    assert float(checkpoint.load_denoiser(torch.float32).proj_out.weight.abs().max()) > 0
    card = json.loads((out / "checkpoint" / "petzval.json").read_text())
    assert card["name"] == "smoke_corpus" and card["base"] == 128
    assert len(list((out / "grids").glob("*.png"))) == 1
    assert [step for step, _ in pictures(out, "grid")] == [4]
    row = [each for each in read_metrics(out / "metrics.jsonl") if "loss" in each][-1]
    assert {"grad_norm", "images_per_second", "tokens_per_second", "data_wait"} <= row.keys()
    assert 0 <= row["padding"] < 1 and any(key.startswith("loss_t0.") for key in row)
    assert any(key.startswith("loss_bucket_") for key in row)
    state = json.loads((sorted((out / "checkpoints").iterdir())[-1] / "state.json").read_text())
    assert state["sampler"]["step"] == 4
    words: dict[str, Any] = {"data_folder": folder / "shards", "model": golden_checkpoint}
    with pytest.raises(TrainingError, match="sampler's state belongs to another"):
        run("smoke_corpus_packed", run_folder=out, report=lambda line: None, **words)
    packed = folder / "packed"
    words |= {"start": out / "checkpoint", "num_workers": 1, "report": lambda line: None}
    run("smoke_corpus_packed", run_folder=packed, **words)
    assert Checkpoint.open(packed / "checkpoint").denoiser_config.num_layers == 2


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    folder: Path, golden_checkpoint: Path
) -> None:
    shards = folder / "shards"
    whole = train_some(shards, golden_checkpoint, folder / "whole", 4)
    assert len(whole) == 4
    assert train_some(shards, golden_checkpoint, folder / "halves", 2) == whole[:2]
    assert train_some(shards, golden_checkpoint, folder / "halves", 4) == whole


def test_two_processes_train_as_one(folder: Path, golden_checkpoint: Path) -> None:
    together = folder / "together"
    together.mkdir()
    shutil.copytree(folder / "shards", together / "shards")
    assert launch(together, (2, ["corpus"], "never")) == [[0, 0]], logs(together)
    expected = corpus_steps(Ranks(), together)
    found = json.loads((together / "corpus2.json").read_text())
    assert [sorted(ids) for ids in found["ids"]] == [sorted(ids) for ids in expected["ids"]]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["grad_norms"] == pytest.approx(expected["grad_norms"], rel=1e-4)
    # A run of two processes leaves a whole checkpoint, and one process goes on with it.
    out = together / "run"
    assert float(Checkpoint.open(out / "checkpoint").load_denoiser().proj_out.weight.abs().max())
    assert len(list((out / "grids").glob("*.png"))) == 1
    alone = train_some(together / "shards", golden_checkpoint, folder / "alone", 4)
    both = train_some(together / "shards", golden_checkpoint, out, 4)
    assert len(found["run"]) == 2 and both == pytest.approx(alone, rel=1e-4)


def test_the_recipes_have_the_figures_of_the_paper() -> None:
    first, second = lens_base_stage1(), lens_base_stage2()
    for recipe, rate in ((first, 2e-4), (second, 1e-4)):
        optimizer, sampler = recipe.loop.optimizer, recipe.objective.sampler
        assert (optimizer.kind, optimizer.betas) == ("adamw", (0.9, 0.999))
        assert (optimizer.learning_rate, optimizer.decay) == (rate, "constant")
        assert (optimizer.max_grad_norm, recipe.loop.num_steps) == (1.0, 400_000)
        assert recipe.loop.autocast == "bfloat16"
        assert recipe.loop.parallel.recompute == "blocks"
        assert recipe.loop.parallel.weighting == "rank"
        assert (sampler.mode, sampler.num_virtual_ranks) == ("bucket", 128)
        assert sampler.bucket.batch_sizes == LENS_BATCH_SIZES == ((1024, 24), (2304, 10), (4096, 6))
        assert not recipe.objective.stratified
    assert first.objective.square == 512
    assert second.objective.square is None and second.objective.bases == (512, 768, 1024)
    fast = lens_base_stage2_fast()
    assert fast.objective.sampler.mode == "packed" and fast.objective.stratified
    assert fast.loop.optimizer.kind == "muon" and fast.loop.optimizer.learning_rate == 1e-4
    with torch.device("meta"):
        toy = MMDiT(toy_1b().model)
    assert 1.15e9 < sum(p.numel() for p in toy.parameters()) < 1.25e9


Mistake = tuple[str, Callable[[Path], dict[str, Any]], type[PetzvalError], str]

MISTAKES: dict[str, Mistake] = {
    "no shards": (
        "smoke_corpus",
        lambda folder: {"data_folder": folder / "made"},
        DataError,
        "has no shards",
    ),
    "shards of another form": (
        "smoke_corpus",
        lambda folder: {"data_folder": _unnamed(folder)},
        DataError,
        "shards of another form",
    ),
    "shards of another size": (
        "lens_base_stage2",
        lambda folder: {},
        DataError,
        "of base size 128; this recipe takes 512,768,1024",
    ),
    "networks that do not fit": (
        "toy_1b",
        lambda folder: {},
        TrainingError,
        "features of width 2880 .* give 128 latent channels and features of width 64",
    ),
    "no checkpoint": (
        "smoke_corpus",
        lambda folder: {"model": folder / "shards"},
        CheckpointError,
        "transformer/ is missing",
    ),
    "a cache of another autoencoder": (
        "smoke_corpus",
        lambda folder: {"latents": _cache(folder)},
        DataError,
        "latents of another autoencoder",
    ),
    "a recipe that has no use for a model": (
        "smoke_vae",
        lambda folder: {},
        TrainingError,
        "does not train on shards",
    ),
}


def _unnamed(folder: Path) -> Path:
    copy = folder / "unnamed"
    shutil.copytree(folder / "shards", copy)
    (copy / "shards.json").unlink()
    return copy


def _cache(folder: Path) -> Path:
    cache = folder / "other"
    cache.mkdir()
    card = {"format": 1, "autoencoder": "another", "shards": "others"}
    (cache / "latents.json").write_text(json.dumps(card))
    return cache


@pytest.mark.parametrize("which", MISTAKES)
def test_mistakes_are_answered_before_anything_is_made(
    which: str, folder: Path, golden_checkpoint: Path
) -> None:
    recipe, words, kind, message = MISTAKES[which]
    asked: dict[str, Any] = {"data_folder": folder / "shards", "model": golden_checkpoint}
    with pytest.raises(kind, match=message) as caught:
        run(recipe, run_folder=folder / "never", **asked | words(folder))
    assert caught.value.hint and not (folder / "never").exists()


def test_a_number_of_processes_that_cannot_share(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="128 virtual ranks cannot be shared by 3"):
        run("lens_base_stage1", data_folder=folder / "shards", run_folder=folder / "never")
    assert not (folder / "never").exists()


@pytest.mark.parametrize("how", [None, "dynamic"])
def test_how_blocks_are_compiled_can_be_asked_for(how: Compile | None) -> None:
    loop = lens_base_stage2().loop
    session = Session(
        minutes=None, resume=True, num_workers=None, report=lambda line: None, ranks=Ranks(),
        config_hash="", compile=how,
    )  # fmt: skip
    applied = session.apply(loop).parallel
    assert applied == dataclasses.replace(loop.parallel, compile=how or "none")
