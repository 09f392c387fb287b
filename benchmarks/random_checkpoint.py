"""A checkpoint of any size with random numbers, in the published layout, written cheaply.

`python -m benchmarks.random_checkpoint FOLDER` writes one of the full size (21 GB). Nothing is held
but one block of numbers: a tensor is that block again and again, times what keeps values moderate;
zeros are holes in the file. Arithmetic and memory do not depend on what was learnt.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

import petzval
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE
from petzval.models.vae import AutoencoderConfig
from petzval.weights.manifest import ExpectedTensor, expected_tensors
from petzval.weights.published import (
    MODEL_INDEX,
    SCHEDULER,
    SCHEDULER_CONFIG,
    TOKENIZER,
    ComponentConfig,
    component_folder,
    file_stem,
    published_json,
)

BLOCK = 1 << 22
"""Numbers that are drawn."""

MXFP4_EXPONENT = 120
"""2^-7: random codes then have a spread of about one over the square root of 2880 inputs."""

_MODULATION = 0.1
_SIZES = {"BF16": 2, "F32": 4, "U8": 1, "I64": 8}


def write_random_checkpoint(
    folder: Path,
    denoiser: MMDiTConfig = LENS_MMDIT,
    encoder: GptOssConfig = LENS_GPT_OSS,
    vae: AutoencoderConfig = LENS_VAE,
    *,
    hollow: bool = False,
) -> None:
    """Write denoiser and encoder in bfloat16 and MXFP4, the autoencoder in float32.

    Args:
        folder: that there is not yet.
        denoiser, encoder, vae: sizes.
        hollow: no numbers, holes alone: next to no room on the disk, and enough to plan with.
    """
    folder.mkdir(parents=True)
    blocks = None if hollow else Blocks()
    for config, dtype in ((denoiser, "BF16"), (encoder, "BF16"), (vae, "F32")):
        _write_component(folder / component_folder(config), config, dtype, blocks)
    _write_json(folder / "model_index.json", dict(MODEL_INDEX))
    (folder / SCHEDULER).mkdir()
    _write_json(folder / SCHEDULER / "scheduler_config.json", dict(SCHEDULER_CONFIG))
    mini = Path(petzval.__file__).parent / "assets" / "mini"
    shutil.copytree(mini / TOKENIZER, folder / TOKENIZER)


def _write_component(
    folder: Path, config: ComponentConfig, dtype: str, blocks: Blocks | None
) -> None:
    folder.mkdir()
    _write_json(folder / "config.json", dict(published_json(config)))
    expected = {key: each for key, each in expected_tensors(config).items() if each.required}
    header: dict[str, Any] = {}
    position = 0
    for key, each in sorted(expected.items(), key=lambda item: item[1].kind == "packed"):
        name = {"float": dtype, "packed": "U8", "integer": "I64"}[each.kind]
        stop = position + math.prod(each.shape) * _SIZES[name]
        header[key] = {"dtype": name, "shape": each.shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with (folder / f"{file_stem(config)}.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if blocks is not None:
            for key, entry in header.items():
                _write_tensor(file, key, entry["dtype"], expected[key], blocks)
        file.truncate(8 + len(text) + position)


def _write_tensor(
    file: BinaryIO, key: str, dtype: str, wanted: ExpectedTensor, blocks: Blocks
) -> None:
    count = math.prod(wanted.shape)
    if dtype == "U8":
        _repeat(file, blocks.codes(scales=key.endswith("_scales")), count)
    elif _is_gain(key):
        _repeat(file, torch.ones(count, dtype=_torch(dtype)), count)
    elif dtype == "I64" or len(wanted.shape) == 1:
        file.seek(count * _SIZES[dtype], 1)  # a hole reads as zeros
    else:
        inputs = math.prod(wanted.shape[1:])
        scale = (_MODULATION if "_mod." in key else 1.0) * inputs**-0.5
        _repeat(file, blocks.numbers(scale, _torch(dtype)), count)


class Blocks:
    """A block of random numbers in each scale that is asked for, made once."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._pool = torch.randn(BLOCK, generator=self._generator)
        self._made: dict[object, Tensor] = {}

    def numbers(self, scale: float, dtype: torch.dtype) -> Tensor:
        """Normally distributed, with this deviation."""
        if (scale, dtype) not in self._made:
            self._made[scale, dtype] = (self._pool * scale).to(dtype)
        return self._made[scale, dtype]

    def codes(self, *, scales: bool) -> Tensor:
        """Bytes of MXFP4: any two codes, or one and the same exponent."""
        if scales not in self._made:
            low, high = (MXFP4_EXPONENT, MXFP4_EXPONENT + 1) if scales else (0, 256)
            numbers = torch.randint(low, high, (BLOCK,), generator=self._generator)
            self._made[scales] = numbers.to(torch.uint8)
        return self._made[scales]


def _is_gain(key: str) -> bool:
    return key.endswith(("norm.weight", "running_var")) or (
        key.endswith(".weight") and ("norm" in key.split(".")[-2] or ".txt_norm." in f".{key}")
    )


def _torch(dtype: str) -> torch.dtype:
    return {"BF16": torch.bfloat16, "F32": torch.float32}[dtype]


def _repeat(file: BinaryIO, values: Tensor, count: int) -> None:
    data = values.view(torch.uint8).numpy().data
    size = values.element_size()
    while count > 0:
        part = min(count, len(values))
        file.write(data[: part * size])
        count -= part


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_random_checkpoint(Path(sys.argv[1]))
