"""What a file's rounding costs where it counts: the first velocity, and the picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from petzval.inference.event import PicturePixels
from petzval.inference.pipeline import Pipeline
from petzval.inference.variants import locate
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.component import open_component
from petzval.weights.convert import convert_checkpoint, convert_component
from petzval.weights.formats import Target
from tests.support import TINY_CHECKPOINT
from tests.weights.formats import (
    SDNQ_SETTINGS,
    Pack,
    mxfp8,
    nvfp4,
    quantised_denoiser,
    saved,
    sdnq_uint4,
)

MINI = locate("mini-turbo").folder / "transformer"
APPLE = "a red apple on a light blue background"
OPTIONS: dict[str, Any] = {"size": "128x128", "steps": 4, "seed": 0}


def _drawn(pipeline: Pipeline, **options: Any) -> tuple[Tensor, PicturePixels]:
    """The first call's velocity and the finished picture."""
    velocities: list[Tensor] = []
    hook = pipeline.denoiser.register_forward_hook(lambda *call: velocities.append(call[2]))
    [image] = pipeline.generate(APPLE, **(OPTIONS | options))
    hook.remove()
    return velocities[0], image.pixels


def _psnr(got: PicturePixels, exact: PicturePixels) -> float:
    """In dB; 100 where they are the same."""
    error = float(np.square(got.astype(float) - exact.astype(float)).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-10 * 255**2)))


# ── quantised files ───────────────────────────────────────────────────────────────────────────────


def _written(target: Target) -> Callable[[Path], Path]:
    """As `petzval convert` writes it."""

    def write(folder: Path) -> Path:
        convert_component(open_component(MINI, "denoiser"), folder / "denoiser", target)
        return folder / "denoiser"

    return write


def _packed(pack: Pack) -> Callable[[Path], Path]:
    """ComfyUI's file, the settings inside."""

    def write(folder: Path) -> Path:
        exact = load_file(MINI / "diffusion_pytorch_model.safetensors")
        config = {"petzval.config": (MINI / "config.json").read_text(encoding="utf-8")}
        return saved(folder / "denoiser", quantised_denoiser(pack, exact), config)

    return write


def _sdnq(folder: Path) -> Path:
    """SD.Next's folder, its settings beside."""
    name = "diffusion_pytorch_model.safetensors"
    saved(folder / name, quantised_denoiser(sdnq_uint4, load_file(MINI / name)))
    shutil.copy(MINI / "config.json", folder)
    (folder / "quantization_config.json").write_text(json.dumps(SDNQ_SETTINGS), encoding="utf-8")
    return folder


FILES: dict[str, tuple[Callable[[Path], Path], str, float, float]] = {
    "gguf-q8_0": (_written("gguf-q8_0"), "Q8_0", 0.007, 49.5),
    "comfyui-fp8": (_written("comfyui-fp8"), "float8_e4m3fn", 0.029, 42.5),
    "mxfp8": (_packed(mxfp8), "mxfp8", 0.032, 43.0),
    "nvfp4": (_packed(nvfp4), "nvfp4", 0.144, 25.5),
    "sdnq-uint4": (_sdnq, "sdnq_uint4", 0.082, 34.0),
}
"""Writer, packing as it is read, most relative error of the velocity, least PSNR in dB of the
picture; docs/guides/files.md says what was measured."""


@pytest.fixture(scope="module")
def exact() -> Generator[tuple[Pipeline, Tensor, PicturePixels]]:
    pipeline = Pipeline.load("mini-turbo", device="cpu", dtype="float32")
    yield pipeline, *_drawn(pipeline)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_quantised_file_of_mini_is_as_near_as_stated(
    exact: tuple[Pipeline, Tensor, PicturePixels], tmp_path: Path, name: str
) -> None:
    write, packing, most, least = FILES[name]
    file = write(tmp_path)
    assert open_component(file, "denoiser").packings == (packing,)
    pipeline, velocity, picture = exact
    other = Pipeline.load(
        "mini-turbo", device="cpu", dtype="float32", denoiser=file, text=pipeline.text
    )
    got, drawn = _drawn(other)
    error = float((got - velocity).norm() / velocity.norm())
    assert most / 2 < error < most, error
    assert least < _psnr(drawn, picture) < least + 6, _psnr(drawn, picture)


# ── half ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_stored_in_float16_draws_the_picture_of_float32(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    convert_checkpoint(checkpoint, tmp_path / "half", dtype=torch.float16)
    half = Checkpoint.open(tmp_path / "half")
    for name in ("denoiser_source", "encoder_source", "vae_source"):
        source, exact = getattr(half, name), getattr(checkpoint, name)
        for key, info in source.infos.items():
            kept = key.startswith("bn.")  # the statistics of latents, as published
            assert kept or info.dtype == "F16", key
            assert torch.equal(source.read(key), exact.read(key).to(info.torch_dtype)), key
    other = Pipeline.load(tmp_path / "half", device="cpu", dtype="float32")
    small = {"size": "64x48", "steps": 2, "guidance": 2.0}
    (got, drawn), (velocity, picture) = (_drawn(each, **small) for each in (other, pipeline))
    assert 0 < float((got - velocity).norm() / velocity.norm()) < 1.3e-3
    assert _psnr(drawn, picture) > 58  # a few values by one
