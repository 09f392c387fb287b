"""Predicted and measured peak memory agree, each picture in its own process.

Python, torch and their libraries are part of both: the prediction counts what the process holds
when the plan is made, and the measurement is the system's own figure for the whole process.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest

from benchmarks.cases.memory import DENOISER, ENCODER, VAE, keeps_to, measured
from benchmarks.random_checkpoint import write_random_checkpoint
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.manifest import expected_tensors

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("memory") / "random"
    write_random_checkpoint(place, dataclasses.replace(DENOISER, num_layers=3), ENCODER, VAE)
    return place


def test_a_random_checkpoint_is_one(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.encoder_config.packed_experts
    weights = checkpoint.denoiser_source.read("transformer_blocks.0.img_mlp.w1.weight").float()
    assert float(weights.std()) == pytest.approx(1536**-0.5, rel=0.02)
    assert (
        float(checkpoint.denoiser_source.read("transformer_blocks.1.img_norm1.weight").min()) == 1
    )
    assert float(checkpoint.denoiser_source.read("img_in.bias").abs().max()) == 0
    # Blocks of zeros are holes: the file is larger than its room on the disk, never the reverse.
    for file in checkpoint.denoiser_source.files:
        assert file.stat().st_blocks * 512 <= file.stat().st_size + 2**16


def test_the_full_size_is_the_published_one() -> None:
    """Bytes of what `python -m benchmarks.random_checkpoint` writes, from the published sizes."""
    sizes = {"float": 2, "packed": 1, "integer": 8}
    total = {
        type(config).__name__: sum(
            math.prod(each.shape) * sizes[each.kind]
            for each in expected_tensors(config).values()
            if each.required
        )
        for config in (LENS_MMDIT, LENS_GPT_OSS, LENS_VAE)
    }
    assert total["MMDiTConfig"] == 8_208_450_304
    assert total["GptOssConfig"] == 12_602_992_128


@linux
@pytest.mark.parametrize(
    ("strategy", "batch"),
    [
        ("all resident", 1),
        ("streamed, folded, strips", 1),
        ("streamed, folded, strips", 4),
        ("streamed, half of it kept", 1),
    ],
)
def test_the_predicted_peak_is_the_measured_one(folder: Path, strategy: str, batch: int) -> None:
    words = ("--strategy", strategy, "--size", "256x256", "--steps", "2", "--batch", str(batch))
    report = measured(folder, *words)
    assert report["batch"] == batch
    assert keeps_to(report), report
    assert report["spread"] > 0
