"""The golden runner on a folder of another form: other sizes, layers, prompts and names.

The numbers are recorded from this program itself, so they prove nothing about its arithmetic; they
prove that the runner reads everything from the folder, and notices arguments that do not fit.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from petzval.conditioning.encoder import PromptTruncatedWarning
from petzval.config import from_mapping
from petzval.inference.goldens.denoiser import record_states
from petzval.inference.goldens.folder import GoldenFile, GoldenFolder, Subject
from petzval.inference.goldens.pictures import PictureCase, run_parts
from petzval.inference.verify_goldens import compare
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.weights.tensors import TensorSource
from petzval.weights.writing import Component, save_checkpoint, write_safetensors
from tests.support import TINY_CHECKPOINT


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Subject]:
    """A checkpoint with two blocks and three features, and goldens recorded from it."""
    folder = tmp_path_factory.mktemp("other")
    subject = Subject.load(TINY_CHECKPOINT)
    config = MMDiTConfig(
        num_layers=2,
        num_attention_heads=3,
        in_channels=128,
        out_channels=32,
        enc_hidden_dim=64,
        selected_layer_index=(0, 3, 4),
    )
    denoiser = random_denoiser(config)
    checkpoint = folder / "checkpoint"
    parts = [
        Component.of(denoiser),
        Component.of(subject.encoder),
        Component.of(subject.autoencoder),
    ]
    save_checkpoint(checkpoint, parts, subject.checkpoint.tokenizer_folder)
    loaded = Subject.load(checkpoint)
    record(folder, loaded)
    return folder, loaded


def random_denoiser(config: MMDiTConfig) -> MMDiT:
    denoiser = MMDiT(config)
    generator = torch.Generator().manual_seed(5)
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.08, generator=generator)
    return denoiser.requires_grad_(False)


CASES: dict[str, dict[str, Any]] = {
    "low": {
        "prompt": "a cat",
        "height": 48,
        "width": 80,
        "steps": 3,
        "guidance_scale": 2.5,
        "negative_prompt": "rain",
        "date": "2025-02-03",
        "seed": 11,
    },
    "pair": {
        "prompt": ["a cat", "two red birds on a wall"],
        "height": 32,
        "width": 32,
        "steps": 2,
        "guidance_scale": 1.0,
        "num_images_per_prompt": 2,
        "max_sequence_length": 103,
        "date": "2026-05-26",
    },
}


def record_pictures(name: str, subject: Subject) -> dict[str, Tensor]:
    """One case of `pipeline.safetensors`."""
    case = from_mapping(PictureCase, CASES[name], where=name)
    count = len(case.prompts) * case.num_images_per_prompt
    shape = (count, case.grid[0] * case.grid[1], 128)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(11))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        run = run_parts(case, noise, subject)
    grey = (run.decoded.clamp(-1, 1) + 1).permute(0, 2, 3, 1)
    return {
        f"{name}.init_latents": noise,
        f"{name}.sigmas": run.sigmas,
        f"{name}.timesteps": 1000 * run.sigmas[:-1],
        f"{name}.model_outputs": run.model_outputs,
        f"{name}.latents_per_step": run.latents_per_step,
        f"{name}.image": grey / 2,
        f"{name}.image_u8": (grey * 127.5).to(torch.uint8),
    }


def record_call(subject: Subject) -> dict[str, Tensor]:
    """One case of `dit.safetensors`."""
    features = [torch.randn(1, 4, 64) for _ in range(3)]
    tokens, sigma = torch.randn(1, 21, 128), torch.tensor([0.3])
    return {
        "odd.hidden_states": tokens,
        "odd.timestep": sigma,
        "odd.hw": torch.tensor([3, 7]),
        "odd.text_mask": torch.ones(1, 4, dtype=torch.uint8),
        **{f"odd.text_features.{i}": layer for i, layer in enumerate(features)},
        "odd.output": subject.denoiser.velocity(tokens, features, sigma, (3, 7)),
    }


@torch.no_grad()
def record(folder: Path, subject: Subject) -> None:
    """Goldens in the layout of the public set, made by this program itself."""
    files = {
        "pipeline.safetensors": record_pictures("low", subject) | record_pictures("pair", subject),
        "dit.safetensors": record_call(subject),
    }
    for name, state in files.items():
        write_safetensors(folder / name, state)
    calls = GoldenFile(TensorSource.open(folder / "dit.safetensors"))
    states = record_states(subject.denoiser, calls, "odd")
    kept = ("b1.txt_mlp", "b1.img_norm2", "block1.img", "txt_norm.2", "output")
    files["dit_blocks.safetensors"] = {key: states[key] for key in kept}
    write_safetensors(folder / "dit_blocks.safetensors", files["dit_blocks.safetensors"])
    index = {
        name: {
            key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for key, tensor in state.items()
        }
        for name, state in files.items()
    }
    content = {"files": index, "config": {"dit": {"num_layers": 2}}}
    (folder / "index.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "pipeline_cases.json").write_text(json.dumps(CASES), encoding="utf-8")


def test_a_folder_of_another_form_passes(other: tuple[Path, Subject]) -> None:
    results = list(compare(GoldenFolder(other[0]), other[1]))
    assert [(r.name, r.detail) for r in results if r.status == "failed"] == []
    names = {result.name for result in results if result.status == "passed"}
    assert {
        "dit/odd alone",
        "dit_blocks/b1.txt_mlp",
        "pipeline/low noise",
        "pipeline/low product",
        "pipeline/pair image",
        "pipeline/pair product",
        "index/config dit",
    } <= names


@pytest.mark.parametrize(
    ("change", "case"),
    [
        ({"steps": 4}, "pipeline/low sigmas"),
        ({"guidance_scale": 3.0}, "pipeline/low latents_per_step"),
        ({"negative_prompt": ""}, "pipeline/low model_outputs"),
        ({"prompt": "a dog"}, "pipeline/low model_outputs"),
        ({"date": "2025-02-04"}, "pipeline/low model_outputs"),
        ({"seed": 12}, "pipeline/low noise"),
        ({"unheard_of": 1}, "pipeline/low"),
    ],
)
def test_other_arguments_do_not_pass(
    other: tuple[Path, Subject], tmp_path: Path, change: dict[str, Any], case: str
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(other[0], folder, ignore=shutil.ignore_patterns("checkpoint", "dit*"))
    cases = json.loads((folder / "pipeline_cases.json").read_text(encoding="utf-8"))
    cases["low"] |= change
    (folder / "pipeline_cases.json").write_text(json.dumps(cases), encoding="utf-8")
    results = {result.name: result for result in compare(GoldenFolder(folder), other[1])}
    assert results[case].status == "failed"
    assert results["pipeline/pair image"].status == "passed"
