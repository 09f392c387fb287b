"""`petzval distill` from end to end, on a teacher of random weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from petzval.config import from_mapping, to_mapping
from petzval.distill.recipes import RECIPES, lens_turbo, recipe_by_name, smoke_turbo
from petzval.distill.run import distill
from petzval.errors import ConfigError, TrainingError
from petzval.inference.variants import Defaults, locate
from petzval.pretrain import results
from petzval.pretrain.cache import CacheConfig, write_shard
from petzval.pretrain.scenes import ColouredSquares
from petzval.training import loop
from petzval.training.lora import LoraConfig
from petzval.training.metrics import read_metrics
from petzval.weights.checkpoint import Checkpoint
from tests.cli.conftest import Run
from tests.distill import ranked
from tests.training.launch import run_module


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, golden_checkpoint: Path) -> Path:
    """A few squares in two sizes, encoded by the teacher's own autoencoder."""
    folder = tmp_path_factory.mktemp("distill") / "latents"
    autoencoder = Checkpoint.open(golden_checkpoint).load_vae(torch.float32)
    for base in (128, 256):
        write_shard(
            folder,
            CacheConfig(base=base, num_shards=1, shard_size=4, num_captions=2),
            0,
            ColouredSquares(0),
            autoencoder,
            autoencoder_id=results.fingerprint_of(autoencoder),
        )
    return folder


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_are_values_that_json_can_hold(name: str) -> None:
    recipe = recipe_by_name(name)
    stored = json.loads(json.dumps(to_mapping(recipe)))
    assert from_mapping(type(recipe), stored, where=name) == recipe


def test_the_recipe_of_lens_has_the_paper_s_figures() -> None:
    recipe = lens_turbo()
    objective, optimizer = recipe.objective, recipe.loop.optimizer
    assert (objective.num_steps, objective.critic_updates, objective.guidance) == (4, 4, 5.0)
    assert (objective.score_weight, objective.adversarial_weight) == (0.1, 0.001)
    assert (objective.r1_gamma, objective.r1_alpha, objective.alignment) == (1.0, 0.1, 0.03)
    assert (optimizer.learning_rate, optimizer.betas) == (5e-7, (0.0, 0.9))
    assert (recipe.heads.learning_rate, recipe.loop.num_steps) == (1e-4, 1000)
    assert recipe.data.batch_tokens // (64 * 64) == 4


def test_settings_that_contradict_each_other_are_refused() -> None:
    recipe = smoke_turbo()
    with pytest.raises(ConfigError, match="text_dropout"):
        dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, text_dropout=0.1))
    with pytest.raises(ConfigError, match="rescan_steps"):
        dataclasses.replace(recipe, rescan_steps=7)
    with pytest.raises(ConfigError, match=r"start_share must be in \[0, 1\), got 1"):
        dataclasses.replace(recipe, start_share=1.0)
    with pytest.raises(ConfigError, match="at least one"):
        dataclasses.replace(recipe, heads=dataclasses.replace(recipe.heads, blocks=()))


def test_a_teacher_becomes_a_checkpoint_of_four_steps(
    run: Run,
    golden_checkpoint: Path,
    latents: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped by a signal after one iteration, gone on with, drawn from."""
    words = ("distill", "smoke_turbo", "--teacher", golden_checkpoint, "--latents", latents)
    words = (*words, "--out", "run", "--device", "cpu")
    step = loop.training_step

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupted)
        code, out, err = run(*words)
    assert (code, out) == (130, "") and "the same command goes on" in err
    code, out, err = run(*words)
    assert code == 0, err
    assert out.strip() == "run/checkpoint" and "resumed at step 1" in err
    checkpoint = Path("run/checkpoint")
    assert locate(checkpoint).defaults == Defaults(steps=4, guidance=1.0, base=1024)
    assert locate(checkpoint).name == "smoke-turbo"
    own, theirs = (
        Checkpoint.open(folder).load_denoiser(torch.float32).state_dict()
        for folder in (checkpoint, golden_checkpoint)
    )
    assert any(not torch.equal(own[name], theirs[name]) for name in own)
    rows = read_metrics(Path("run/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["sigma_below"] < 0 and row["num_skipped_fake"] == 0 for row in rows)
    assert (checkpoint / "training/distill/recipe.json").is_file()
    assert list(Path("run/grids").glob("*.png"))
    code, out, err = run(
        "generate", "a cat", "--model", checkpoint, "--size", "64x64", "--device", "cpu",
        "--out", "cat.png",
    )  # fmt: skip
    assert code == 0, err
    code, _, err = run("distill", "smoke_turbo", "--teacher", "mini", *words[4:])
    assert code == 2 and "another teacher" in err


def test_a_student_begins_with_another_s_weights(
    golden_checkpoint: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes them before its first iteration, and keeps the records of what it began with."""
    earlier = tmp_path / "earlier"
    shutil.copytree(golden_checkpoint, earlier)
    file = earlier / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: 0.5 * tensor for name, tensor in load_file(file).items()}, file)
    records = earlier / "training" / "distill"
    records.mkdir(parents=True)
    (records / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    expected = Checkpoint.open(earlier).load_denoiser(torch.float32).state_dict()
    step = loop.training_step
    seen: list[bool] = []

    def watched(objective: Any, batch: Any, state: Any, **options: Any) -> Any:
        own = state.model.state_dict()
        seen.append(all(torch.equal(own[name], expected[name]) for name in expected))
        return step(objective, batch, state, **options)

    monkeypatch.setattr(loop, "training_step", watched)
    outcome = distill(
        "smoke_turbo", tmp_path / "run", teacher=golden_checkpoint, latents=latents, start=earlier,
        report=lambda line: None,
    )  # fmt: skip
    assert seen == [True, False]
    assert outcome.checkpoint is not None
    made = outcome.checkpoint / "training" / "distill"
    assert (made / "started_from" / "metrics.jsonl").is_file()
    session = json.loads((made / "recipe.json").read_text(encoding="utf-8"))["session"]
    assert session["start"] == Checkpoint.open(earlier).identity


def test_a_guided_student_is_where_a_turbo_begins(
    run: Run, golden_checkpoint: Path, latents: Path
) -> None:
    words = ("--teacher", golden_checkpoint, "--latents", latents, "--device", "cpu")
    code, out, err = run("distill", "smoke_guided", *words, "--out", "guided")
    assert code == 0, err
    assert locate(Path(out.strip())).defaults == Defaults(steps=4, guidance=1.0, base=1024)
    rows = read_metrics(Path("guided/metrics.jsonl"))
    assert {f"loss_step_{number}" for number in (1, 2, 3, 4)} <= rows[0].keys()
    first = "guided/checkpoint"
    code, _, err = run("distill", "smoke_turbo", *words, "--start", first, "--out", "turbo")
    assert code == 0, err
    second = "turbo/checkpoint"
    code, out, err = run("distill", "smoke_turbo", *words, "--start", second, "--out", "again")
    assert code == 0, err
    records = Path(out.strip()) / "training" / "distill"
    found = [
        json.loads((records / folder / "recipe.json").read_text(encoding="utf-8"))["recipe"]
        for folder in (".", "started_from", "started_from/started_from")
    ]
    assert found == ["smoke_turbo", "smoke_turbo", "smoke_guided"]


def test_a_result_can_lie_between_start_and_end(
    golden_checkpoint: Path, latents: Path, tmp_path: Path
) -> None:
    """By a share of each weight; the run itself is the same."""
    made: dict[float, dict[str, Tensor]] = {}
    for share in (0.0, 0.25):
        outcome = distill(
            dataclasses.replace(smoke_turbo(), start_share=share),
            tmp_path / f"run-{share}",
            teacher=golden_checkpoint,
            latents=latents,
            start=golden_checkpoint,
            report=lambda line: None,
        )
        assert outcome.checkpoint is not None
        made[share] = Checkpoint.open(outcome.checkpoint).load_denoiser(torch.float32).state_dict()
    begun = Checkpoint.open(golden_checkpoint).load_denoiser(torch.float32).state_dict()
    for name, tensor in made[0.25].items():
        expected = 0.75 * made[0.0][name] + 0.25 * begun[name]
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-2, msg=name)
    assert any(not torch.equal(made[0.0][name], made[0.25][name]) for name in begun)
    card = (tmp_path / "run-0.25" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    assert "to 25% those that it began with" in card


def test_mistakes_are_named(run: Run, golden_checkpoint: Path) -> None:
    code, _, err = run("distill", "huge_turbo")
    assert code == 2 and "lens_turbo, mini_guided, mini_turbo" in err
    code, _, err = run("distill", "smoke_turbo", "--device", "cpu")
    assert code == 2 and "--teacher" in err
    code, _, err = run("distill", "mini_turbo", "--device", "cpu")
    assert code == 2 and "keeps 50%" in err and "mini_guided" in err
    words = ("distill", "smoke_turbo", "--teacher", golden_checkpoint, "--out", "x/run")
    code, _, err = run(*words)
    assert code == 2 and "holds no latents" in err
    assert not Path("x/run").exists()


def test_a_fake_score_of_low_rank_learns_and_is_resumed(
    tmp_path: Path, golden_checkpoint: Path, latents: Path
) -> None:
    smoke = smoke_turbo()
    recipe = dataclasses.replace(
        smoke,
        fake_lora=LoraConfig(rank=2),
        objective=dataclasses.replace(smoke.objective, critic_updates=1),
    )
    for name, legs in {"straight": (2,), "legs": (1, 2)}.items():
        for num_steps in legs:
            asked = dataclasses.replace(
                recipe, loop=dataclasses.replace(recipe.loop, num_steps=num_steps)
            )
            distill(
                asked,
                tmp_path / name,
                teacher=golden_checkpoint,
                latents=latents,
                report=lambda line: None,
            )
    files = ("model", "ema", "fake.model", "fake.optimizer", "heads.model", "optimizer")
    for file in files:
        left, right = (
            load_file(tmp_path / name / f"checkpoints/step-00000002/{file}.safetensors")
            for name in ("straight", "legs")
        )
        assert left.keys() == right.keys() and left
        assert all(torch.equal(left[key], right[key]) for key in left), file


def test_a_network_at_hand_has_the_fingerprint_of_its_run(
    tmp_path: Path, golden_checkpoint: Path
) -> None:
    checkpoint = Checkpoint.open(golden_checkpoint)
    autoencoder = checkpoint.load_vae(torch.float32)
    results.save_result(tmp_path, autoencoder, checkpoint.vae_config)
    assert results.fingerprint_of(autoencoder) == results.fingerprint(tmp_path)


def test_latents_of_another_autoencoder_are_refused(
    tmp_path: Path, golden_checkpoint: Path
) -> None:
    autoencoder = Checkpoint.open(golden_checkpoint).load_vae(torch.float32)
    config = CacheConfig(base=128, num_shards=1, shard_size=2, num_captions=1)
    write_shard(
        tmp_path / "latents", config, 0, ColouredSquares(0), autoencoder, autoencoder_id="other"
    )
    with pytest.raises(TrainingError, match="autoencoder other"):
        distill(
            dataclasses.replace(
                smoke_turbo(),
                data=dataclasses.replace(smoke_turbo().data, bases=(128,), base_shares=(1.0,)),
            ),
            tmp_path / "run",
            teacher=golden_checkpoint,
            report=lambda line: None,
        )


@pytest.mark.parametrize("name", ["turbo", "guided"])
def test_two_ranks_equal_one_process_and_one_goes_on_where_two_stopped(
    name: str, tmp_path: Path, golden_checkpoint: Path, latents: Path
) -> None:
    words = [name, str(golden_checkpoint), str(latents), str(tmp_path / "ranked")]
    run_module("tests.distill.ranked", *words)
    for folder in ("ranked", "alone"):
        distill(
            ranked.RECIPES[name](2),
            tmp_path / folder,
            teacher=golden_checkpoint,
            latents=latents,
            report=lambda line: None,
        )
    others = ("fake.model", "heads.model") if name == "turbo" else ()
    for file in ("model", "ema", *others):
        left, right = (
            load_file(tmp_path / folder / f"checkpoints/step-00000002/{file}.safetensors")
            for folder in ("ranked", "alone")
        )
        assert left.keys() == right.keys() and left
        for key, tensor in left.items():
            assert torch.allclose(tensor, right[key], atol=2e-5), (file, key)
