"""Quantised layers: damaged ones are refused by file and key, and a folder is read as a file is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.matrix_codes import decode_matrix
from petzval.weights.assembly import assemble
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.comfy_quant import unpacked
from petzval.weights.component import open_component
from petzval.weights.source import packings, stored_codes
from petzval.weights.tensors import TensorSource
from petzval.weights.verify import verify_checkpoint
from tests.support import GOLDENS
from tests.weights.formats import (
    Pack,
    mark,
    mxfp8,
    nvfp4,
    older_scaled_fp8,
    quantised_denoiser,
    saved,
    scaled_fp8,
    settings,
    unmarked,
)
from tests.weights.support import DENOISER_FILE, copy_checkpoint, velocity_of

WEIGHT = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
State = dict[str, Tensor]


def without(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(f"a.{name}")


def instead(name: str, tensor: Tensor) -> Callable[[State], None]:
    return lambda state: state.__setitem__(f"a.{name}", tensor)


ROTATED = {"format": "int8_tensorwise", "convrot": True}


def rotated(layer: str, weight: Tensor) -> State:
    return {
        f"{layer}.weight": weight.to(torch.int8),
        f"{layer}.weight_scale": torch.ones(len(weight), 1),
        f"{layer}.comfy_quant": mark(**ROTATED, convrot_groupsize=64),
    }


NAN_TILE = torch.full((128, 4), float("nan")).to(torch.float8_e4m3fn)

DAMAGE: list[tuple[Pack, Callable[[State], None], str]] = [
    (scaled_fp8, without("weight"), "key 'a.comfy_quant' has no 'a.weight' beside it"),
    (scaled_fp8, instead("weight_scale", torch.tensor(float("nan"))), "scales that are no numbers"),
    (scaled_fp8, instead("weight_scale", torch.zeros(7)), "expected 1 or 48 floats"),
    (scaled_fp8, instead("weight_scale", torch.zeros(1).int()), "is [1] of I32"),
    (scaled_fp8, instead("scale_weight", torch.ones(1)), "says the same as"),
    (scaled_fp8, instead("weight", WEIGHT), "has dtype F32, expected F8_E4M3"),
    (scaled_fp8, instead("weight", torch.zeros(4).to(torch.float8_e4m3fn)), "has shape [4]"),
    (scaled_fp8, instead("comfy_quant", mark(format="int8_tensorwise")), "expected I8 for int8"),
    (scaled_fp8, instead("comfy_quant", mark(format="convrot_w4a4")), "as 'convrot_w4a4'"),
    (rotated, instead("weight_scale", torch.ones(())), "expected 48 floats"),
    (rotated, instead("comfy_quant", mark(**ROTATED, convrot_groupsize=32)), "in groups of 32"),
    (rotated, instead("comfy_quant", mark(**ROTATED)), "is [48, 64], rotated in groups of 256"),
    (rotated, instead("comfy_quant", mark(**ROTATED, other=1)), "with the setting 'other'"),
    (rotated, without("weight_scale"), "is int8_tensorwise without a.weight_scale"),
    (scaled_fp8, instead("comfy_quant", mark(format="mxfp8", convrot=True)), "setting 'convrot'"),
    (scaled_fp8, instead("comfy_quant", mark()), "is stored as None"),
    (scaled_fp8, instead("comfy_quant", torch.tensor([123, 34], dtype=torch.uint8)), "comfy_quant"),
    (scaled_fp8, instead("comfy_quant", torch.zeros(3)), "is no text in bytes"),
    (unmarked(scaled_fp8), instead("weight", WEIGHT.bfloat16()), "a format that is not known"),
    (mxfp8, without("weight_scale"), "is mxfp8 without a.weight_scale"),
    (mxfp8, instead("weight_scale", torch.zeros(128, 8, dtype=torch.uint8)), "expected [128, 4]"),
    (mxfp8, instead("weight_scale", torch.zeros(128, 4)), "of F32, expected [128, 4] of U8"),
    (mxfp8, instead("weight", torch.zeros(48, 40).to(torch.float8_e4m3fn)), "no multiple of mxfp8"),
    (nvfp4, without("weight_scale_2"), "is nvfp4 without a.weight_scale_2"),
    (nvfp4, instead("weight_scale_2", torch.zeros(3)), "expected 1 floats"),
    (nvfp4, instead("weight_scale_2", torch.tensor(float("inf"))), "scales that are no numbers"),
    (nvfp4, instead("weight", torch.zeros(48, 3, dtype=torch.uint8)), "no multiple of nvfp4's 16"),
]


@pytest.mark.parametrize(("pack", "damage", "message"), DAMAGE, ids=[d[2] for d in DAMAGE])
def test_damage_is_found_before_a_weight_is_read(
    tmp_path: Path, pack: Pack, damage: Callable[[State], None], message: str
) -> None:
    state = pack("a", WEIGHT)
    damage(state)
    file = saved(tmp_path / "x", state)
    with pytest.raises(CheckpointError) as caught:
        unpacked(TensorSource.open(file))
    assert message in caught.value.message
    assert str(file) in caught.value.message


@pytest.mark.parametrize(
    ("pack", "scales"),
    [(nvfp4, NAN_TILE), (mxfp8, torch.full((128, 4), 255, dtype=torch.uint8))],
)
def test_block_scales_that_are_no_numbers_are_found_when_they_are_read(
    tmp_path: Path, pack: Pack, scales: Tensor
) -> None:
    state = pack("a", WEIGHT) | {"a.weight_scale": scales}
    source = unpacked(TensorSource.open(saved(tmp_path / "x", state)))
    with pytest.raises(CheckpointError, match=r"'a\.weight_scale' holds scales that are no num"):
        source.read("a.weight")


@pytest.mark.parametrize("pack", [scaled_fp8, unmarked(scaled_fp8), older_scaled_fp8])
def test_what_stands_before_all_keys_stands_before_scales_and_marks_too(
    tmp_path: Path, pack: Pack
) -> None:
    state = quantised_denoiser(pack)
    if pack is older_scaled_fp8:
        state["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    plain = open_component(saved(tmp_path / "plain", state, settings("denoiser")))
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}
    component = open_component(saved(tmp_path / "prefixed", prefixed, settings("denoiser")))
    assert (component.kind, component.packings) == ("denoiser", ("float8_e4m3fn",))
    assert set(component.source) == set(plain.source)
    for key in plain.source:
        assert torch.equal(component.source.read(key), plain.source.read(key)), key


def test_exponents_may_be_called_what_they_are(tmp_path: Path) -> None:
    state = mxfp8("a", WEIGHT)
    plain = unpacked(TensorSource.open(saved(tmp_path / "x", state))).read("a.weight")
    state["a.weight_scale"] = state["a.weight_scale"].view(torch.float8_e8m0fnu)
    typed = unpacked(TensorSource.open(saved(tmp_path / "y", state)))
    assert torch.equal(typed.read("a.weight"), plain)
    assert packings(typed) == ("mxfp8",)


def test_nothing_quantised_is_passed_through(tmp_path: Path) -> None:
    source = TensorSource.open(saved(tmp_path / "x", {"a.weight": WEIGHT}))
    assert unpacked(source) is source


@pytest.mark.parametrize("text", ["[]", "{", '{"layers": 3}'])
def test_metadata_that_is_damaged(tmp_path: Path, text: str) -> None:
    source = TensorSource.open(saved(tmp_path / "x", {"a.weight": WEIGHT}))
    with pytest.raises(CheckpointError, match="_quantization_metadata"):
        unpacked(source, {"_quantization_metadata": text})


INTEGERS = load_file(GOLDENS.parent / "formats" / "comfy_kitchen_int8.safetensors")


@pytest.mark.parametrize("case", sorted({key.partition(".")[0] for key in INTEGERS}))
def test_the_librarys_own_integers(tmp_path: Path, case: str) -> None:
    group = int(case.removeprefix("convrot")) if case.startswith("convrot") else 0
    said = {"convrot": True, "convrot_groupsize": group} if group else {}
    state = {f"a.{part}": INTEGERS[f"{case}.{part}"] for part in ("weight", "weight_scale")}
    state["a.comfy_quant"] = mark(format="int8_tensorwise", **said)
    source = unpacked(TensorSource.open(saved(tmp_path / "file", state)))
    weight, expected = source.read("a.weight"), INTEGERS[f"{case}.decoded"]
    if group:  # sums, whose order is the machine's
        assert torch.allclose(weight, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    else:
        assert torch.equal(weight, expected)
        [codes] = stored_codes(source, "a.weight")
        parts = [part.load() for part in codes.tensors]
        assert torch.equal(decode_matrix(codes.form, parts), expected)


def test_a_rotation_of_gigabytes_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    state = rotated("a", torch.zeros(1, 1 << 14))
    state["a.comfy_quant"] = mark(**ROTATED, convrot_groupsize=1 << 14)
    source = TensorSource.open(saved(tmp_path / "x", state))
    with pytest.raises(CheckpointError, match="rotated in groups of 16384"):
        unpacked(source)


@pytest.mark.parametrize("pack", [nvfp4, mxfp8])
def test_a_published_folder_is_read_as_the_single_file(tmp_path: Path, pack: Pack) -> None:
    """The inner width of 341 is filled up in rows and in columns, and scales in whole tiles."""
    state = quantised_denoiser(pack)
    assert state["transformer_blocks.0.img_mlp.w1.weight"].shape[0] == 352
    single = saved(tmp_path / "single", state, settings("denoiser"))
    folder = copy_checkpoint(tmp_path)
    shutil.copy(single, folder / DENOISER_FILE)
    published = Checkpoint.open(folder)
    assert verify_checkpoint(folder).passed
    expected = velocity_of(assemble(single, folder, folder).load_denoiser(torch.float32))
    for coded in (False, True):
        denoiser = published.load_denoiser(torch.float32, coded=coded)
        assert torch.equal(velocity_of(denoiser), expected)
