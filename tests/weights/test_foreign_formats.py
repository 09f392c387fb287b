"""Formats that are not read are named, with the way out; those of plain numbers are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.component import open_component
from petzval.weights.foreign_formats import NO_SETTINGS, WAY_OUT
from tests.weights.formats import Pack, mark, quantised_denoiser, saved, settings
from tests.weights.support import copy_checkpoint, edit_json


def nibbles(weight: Tensor) -> Tensor:
    return torch.zeros(weight.numel() // 2, dtype=torch.uint8)


def int8(weight: Tensor) -> Tensor:
    return weight.to(torch.int8)


def words(weight: Tensor) -> Tensor:
    """As MLX packs a convolution, which no layer of these networks is."""
    return torch.zeros((*weight.shape, 1, 1), dtype=torch.uint32)


def beside(codes: Callable[[Tensor], Tensor], **companions: Tensor) -> Pack:
    """A layer's weight as codes, and what a format keeps beside it."""
    return lambda layer, weight: (
        {f"{layer}.weight": codes(weight)}
        | {f"{layer}.{name}": value.clone() for name, value in companions.items()}
    )


def instead(**tensors: Tensor) -> Pack:
    """Other names than `weight`."""
    return lambda layer, _: {f"{layer}.{name}": value.clone() for name, value in tensors.items()}


ONE, INT32 = torch.ones(1), torch.zeros((4, 4), dtype=torch.int32)
NF4 = {"weight.absmax": ONE, "weight.quant_state.bitsandbytes__nf4": ONE.to(torch.uint8)}
W4A4 = mark(format="convrot_w4a4", convrot_groupsize=256)
FORMATS: list[tuple[Pack, str]] = [
    (beside(words, scales=ONE), "integers of MLX"),
    (beside(nibbles, scale=ONE, zero_point=ONE), "SDNQ"),
    (beside(int8, scale=ONE), "SDNQ"),
    (beside(int8, weight_scale=ONE), "is I8 with scales beside it, a format that is not known"),
    (beside(int8, weight_scale=ONE, comfy_quant=W4A4), "is stored as 'convrot_w4a4'"),
    (beside(nibbles, **NF4), "bitsandbytes' NF4"),
    (beside(int8, SCB=ONE), "bitsandbytes' 8-bit integers"),
    (instead(qweight=INT32, qzeros=INT32, scales=ONE), "AWQ"),
    (instead(qweight=INT32, qzeros=INT32, scales=ONE, g_idx=INT32), "GPTQ"),
    (instead(qweight=INT32, wscales=ONE, smooth_factor=ONE), "SVDQuant"),
    (instead(**{"weight._data": INT32, "weight._scale": ONE}), "optimum-quanto"),
    (instead(_weight_qdata=INT32, _weight_scale=ONE), "torchao"),
]


@pytest.mark.parametrize(("pack", "name"), FORMATS)
def test_a_format_that_is_not_read_is_named(tmp_path: Path, pack: Pack, name: str) -> None:
    file = saved(tmp_path / "file", quantised_denoiser(pack), settings("denoiser"))
    with pytest.raises(CheckpointError) as caught:
        open_component(file)
    assert name in caught.value.message
    assert caught.value.message.startswith(f"{file}: ")
    assert len(caught.value.message) < 300
    assert caught.value.hint == (NO_SETTINGS if name == "SDNQ" else WAY_OUT)
    folder = copy_checkpoint(tmp_path)
    shutil.copy(file, folder / "transformer/diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ({"quantization_config": {"quant_method": "other"}}, "'other'"),
    ],
)
def test_a_config_that_says_so_is_believed(
    tmp_path: Path, setting: dict[str, object], name: str
) -> None:
    folder = copy_checkpoint(tmp_path)
    for part in ("vae", "transformer"):
        edit_json(folder / part / "config.json", **setting)
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(folder)
        assert f"stored as {name}, which is not read" in caught.value.message
        assert caught.value.hint == WAY_OUT
