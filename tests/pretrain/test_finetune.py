"""Fine-tuning from end to end on a tiny checkpoint: it learns, it resumes, its results load."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import petzval
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import ConfigError, DataError, PetzvalError, TrainingError
from petzval.pretrain.captioned_folder import read_folder
from petzval.pretrain.denoiser import DenoiserConfig, DenoiserObjective
from petzval.pretrain.finetune import FinetuneConfig, FinetuneOutcome, families, finetune
from petzval.pretrain.folder_pool import FolderPool, batch_tokens, encode_folder
from petzval.training.lora import LoraConfig
from petzval.training.metrics import read_metrics
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.header import read_header
from petzval.weights.lora import read_lora
from tests.pretrain.rings import draw_rings

QUICK = FinetuneConfig(
    num_steps=3,
    batch_size=2,
    base=128,
    learning_rate=3e-3,
    lora=LoraConfig(rank=4, alpha=8.0),
    preview_steps=1,
    preview_guidance=1.0,
)


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_rings(tmp_path_factory.mktemp("rings"))


@pytest.fixture(scope="module")
def tuned(rings: Path, golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run of enough steps to have learnt something."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    config = dataclasses.replace(QUICK, num_steps=16)
    outcome = tune(golden_checkpoint, rings, out, config, keys=["comfyui", "kohya", "diffusers"])
    assert [file.name for file in outcome.files] == [
        "lora", "lora-comfyui.safetensors", "lora-kohya.safetensors", "lora-diffusers.safetensors",
    ]  # fmt: skip
    return out


def tune(
    model: Path, folder: Path, out: Path, config: FinetuneConfig, **options: Any
) -> FinetuneOutcome:
    options.setdefault("report", lambda line: None)  # pyright: ignore[reportUnknownLambdaType]
    return finetune(model, folder, out, config, **options)


def mean_loss(checkpoint: Checkpoint, rings: Path, cache: Path, lora: Path | None) -> float:
    """Of a checkpoint with a LoRA on the same few batches, drawn otherwise than in training."""
    loras = [] if lora is None else [(read_lora(lora, checkpoint.denoiser_config), 1.0)]
    tokens = batch_tokens(2, 128)
    samples = encode_folder(
        read_folder(rings),
        checkpoint.load_vae(torch.float32),
        base=128,
        cache=cache,
        autoencoder_id="",
    )
    objective = DenoiserObjective(
        checkpoint.load_denoiser(torch.float32, loras=loras),
        checkpoint.load_encoder(torch.float32),
        PromptTokenizer(checkpoint.tokenizer_folder),
        FolderPool(samples, batch_tokens=tokens, seed=9),
        DenoiserConfig(batch_tokens=tokens, steps_per_window=1, seed=9, text_dropout=0.0),
    )
    with torch.no_grad():
        return float(np.mean([float(objective.loss(objective.batch(i)).value) for i in range(6)]))


def test_the_loss_falls_on_a_handful_of_pictures(
    tuned: Path, rings: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(golden_checkpoint)
    before = mean_loss(checkpoint, rings, tmp_path, None)
    after = mean_loss(checkpoint, rings, tmp_path, tuned / "lora")
    assert after < 0.9 * before


def test_all_forms_of_the_result_are_the_same_change(tuned: Path, golden_checkpoint: Path) -> None:
    config = Checkpoint.open(golden_checkpoint).denoiser_config
    names = ["lora", *(f"lora-{keys}.safetensors" for keys in ("comfyui", "kohya", "diffusers"))]
    loras = [read_lora(tuned / name, config) for name in names]
    for layer, change in loras[0].changes.items():
        # The last block's text is never read, so it has nothing to learn from.
        dead = layer.startswith(
            ("transformer_blocks.2.txt_mlp", "transformer_blocks.2.attn.to_add")
        )
        assert (float(change.product().abs().max()) > 0) != dead
        for other in loras[1:]:
            assert torch.equal(other.changes[layer].product(), change.product())
    settings = json.loads((tuned / "lora" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    keys = read_header(tuned / "lora" / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.") for key in keys)


def test_the_run_leaves_its_recipe_its_log_and_pictures_from_before_and_after(tuned: Path) -> None:
    recipe = json.loads((tuned / "recipe.json").read_text())
    assert recipe["settings"]["lora"]["rank"] == 4
    assert recipe["pictures"][0]["caption"] == "blue rings, zorp style"
    assert read_metrics(tuned / "metrics.jsonl")[-1]["step"] == 16
    assert sorted(os.listdir(tuned / "grids")) == ["00000000.png", "00000016.png"]
    stored = load_file(tuned / "checkpoints" / "step-00000016" / "model.safetensors")
    assert all(name.endswith(("lora_A", "lora_B")) for name in stored)


def test_a_lora_loads_on_another_checkpoint_of_the_same_architecture(
    tuned: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "turbo"
    shutil.copytree(golden_checkpoint, other)
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    turned = {key: tensor.flip(0).contiguous() for key, tensor in load_file(file).items()}
    save_file(turned, file)
    plain = petzval.load(other, device="cpu")
    pipeline = petzval.load(other, device="cpu", lora=[(tuned / "lora", 0.7)])
    options: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 1.0}
    [image] = pipeline.generate("red rings, zorp style", **options)
    [without] = plain.generate("red rings, zorp style", **options)
    assert not np.array_equal(image.pixels, without.pixels)
    assert [(lora.file, lora.weight) for lora in image.recipe.loras] == [("lora", 0.7)]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    rings: Path, golden_checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    lora = dataclasses.replace(QUICK.lora, dropout=0.2)
    config = dataclasses.replace(QUICK, full=kind == "full", lora=lora, text_dropout=0.4)
    straight = tune(golden_checkpoint, rings, tmp_path / "straight", config)

    def interrupt(line: str) -> None:
        if line.startswith("step 1 "):
            signal.raise_signal(signal.SIGINT)

    stopped = tune(golden_checkpoint, rings, tmp_path / "resumed", config, report=interrupt)
    assert stopped.interrupted and stopped.files == ()
    assert not (tmp_path / "resumed" / straight.files[0].name).exists()
    lines: list[str] = []
    resumed = tune(golden_checkpoint, rings, tmp_path / "resumed", config, report=lines.append)
    assert any(line.startswith("resumed at step 1") for line in lines)
    for file in sorted(straight.files[0].rglob("*.safetensors")):
        again = resumed.files[0] / file.relative_to(straight.files[0])
        assert again.read_bytes() == file.read_bytes()
    assert not resumed.interrupted


def test_a_finished_run_only_writes_its_result_again(
    tuned: Path, rings: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(tuned, out)
    shutil.rmtree(out / "lora")
    lines: list[str] = []
    config = dataclasses.replace(QUICK, num_steps=16)
    [folder] = tune(golden_checkpoint, rings, out, config, report=lines.append).files
    assert not any(line.startswith("step ") for line in lines)
    for file in (tuned / "lora").iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_full_fine_tuning_leaves_a_whole_checkpoint(
    rings: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(QUICK, full=True, num_steps=2)
    [folder] = tune(golden_checkpoint, rings, tmp_path / "run", config).files
    base, changed = Checkpoint.open(golden_checkpoint), Checkpoint.open(folder)
    before = base.load_denoiser(torch.float32).state_dict()
    after = changed.load_denoiser(torch.float32).state_dict()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert "transformer_blocks.0.attn.img_qkv.weight" in moved and len(moved) > 40
    assert changed.vae_source.digest() == base.vae_source.digest()
    assert changed.encoder_source.digest() == base.encoder_source.digest()
    assert (folder / "training" / "finetune" / "recipe.json").is_file()
    assert "--full" in (folder / "README.md").read_text()
    [image] = petzval.load(folder, device="cpu").generate("a fox", size="64x48", steps=1)
    assert image.recipe.model == "checkpoint-finetuned"
    with pytest.raises(TrainingError, match="keys are those of a LoRA"):
        tune(golden_checkpoint, rings, tmp_path / "other", config, keys=["kohya"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("settings", "settings: lora was"),
        ("caption", "pictures or captions"),
        ("picture", "pictures or captions"),
    ],
)
def test_a_run_goes_on_only_as_it_was(
    tuned: Path, rings: Path, golden_checkpoint: Path, tmp_path: Path, change: str, said: str
) -> None:
    folder, out = tmp_path / "rings", tmp_path / "run"
    shutil.copytree(rings, folder)
    out.mkdir()
    shutil.copy(tuned / "recipe.json", out)
    config = QUICK
    if change == "settings":
        config = dataclasses.replace(QUICK, lora=LoraConfig(rank=8))
    elif change == "caption":
        (folder / "red.txt").write_text("scarlet rings")
    else:
        (folder / "red.png").unlink()
    with pytest.raises(TrainingError, match=said) as caught:
        tune(golden_checkpoint, folder, out, config)
    assert "--restart" in caught.value.hint
    assert os.listdir(out) == ["recipe.json"]


@pytest.mark.parametrize("recipe", ["[]", '{"recipe": "mini_vae"}', '{"settings": {}}', "{"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_another_run_is_never_taken(
    rings: Path, golden_checkpoint: Path, tmp_path: Path, recipe: str, resume: bool
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.json").write_text(recipe)
    with pytest.raises(PetzvalError, match="something else|not JSON"):
        tune(golden_checkpoint, rings, tmp_path, QUICK, resume=resume)
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "recipe.json"]
    assert (tmp_path / "recipe.json").read_text() == recipe


def test_restart_begins_anew(
    tuned: Path, rings: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(tuned, out)
    config = dataclasses.replace(QUICK, num_steps=1, lora=LoraConfig(rank=2))
    tune(golden_checkpoint, rings, out, config, resume=False)
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row] == [1]
    assert sorted(os.listdir(out / "grids")) == ["00000000.png", "00000001.png"]
    assert json.loads((out / "lora" / "adapter_config.json").read_text())["r"] == 2


def test_what_cannot_be_used_is_refused_before_anything_is_written(
    rings: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    out = tmp_path / "run"
    nothing = dataclasses.replace(QUICK, lora=LoraConfig(targets=("*.attn.img_kqv",)))
    cases: list[tuple[Path, Path, Path, FinetuneConfig, type[PetzvalError]]] = [
        (golden_checkpoint, rings, out, nothing, ConfigError),
        (golden_checkpoint, taken, out, QUICK, DataError),
        (tmp_path / "absent", rings, out, QUICK, PetzvalError),
        (golden_checkpoint, rings, taken, QUICK, TrainingError),
        (golden_checkpoint, rings, taken / "thesis.txt", QUICK, TrainingError),
        (golden_checkpoint, rings, out, dataclasses.replace(QUICK, learning_rate=0.0), ConfigError),
    ]
    for model, folder, place, config, error in cases:
        with pytest.raises(error):
            tune(model, folder, place, config)
    assert not out.exists()
    assert (taken / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0}, {"batch_size": 0}, {"text_dropout": 1.5}, {"base": 300}, {"seed": -1},
        {"ema_decay": 1.0}, {"minutes": -1.0}, {"preview_guidance": 1e9},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(QUICK, **changes)


def test_unknown_keys_name_the_known_ones() -> None:
    assert families(["kohya"]) == ["kohya"]
    with pytest.raises(ConfigError, match="flux") as caught:
        families(["kohya", "flux"])
    assert "comfyui" in caught.value.hint
