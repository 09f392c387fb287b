"""Scaled fp8, MXFP8 and NVFP4 against recorded bytes of ComfyUI's own library, bit for bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from petzval.kernels.fp8 import (
    decode_mxfp8,
    decode_scaled_fp8,
    encode_mxfp8,
    encode_scaled_fp8,
)
from petzval.kernels.nvfp4 import decode_nvfp4, encode_nvfp4
from petzval.kernels.scale_tiles import from_tiles, tiled_shape, to_tiles
from tests.support import GOLDENS

RECORDED = load_file(GOLDENS.parent / "formats" / "comfy_kitchen.safetensors")
VALUES = RECORDED["values"]


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def test_scaled_fp8_is_the_librarys() -> None:
    codes, scale = encode_scaled_fp8(VALUES)
    assert same_bits(codes, RECORDED["fp8.weight"])
    assert torch.equal(scale, RECORDED["fp8.weight_scale"])
    assert torch.equal(decode_scaled_fp8(codes, scale, torch.float32), RECORDED["fp8.decoded"])


def test_mxfp8_is_the_librarys() -> None:
    codes, exponents = encode_mxfp8(VALUES)
    assert same_bits(codes, RECORDED["mxfp8.weight"])
    assert torch.equal(exponents, RECORDED["mxfp8.weight_scale"])
    decoded = decode_mxfp8(codes, exponents, torch.float32)
    assert torch.equal(decoded, RECORDED["mxfp8.decoded"])
    # Three bits of mantissa and a power of two: bfloat16 holds every value.
    assert torch.equal(decode_mxfp8(codes, exponents, torch.bfloat16).float(), decoded)


def test_nvfp4_is_the_librarys() -> None:
    codes, scales, factor = encode_nvfp4(VALUES)
    assert torch.equal(codes, RECORDED["nvfp4.weight"])
    assert same_bits(scales, RECORDED["nvfp4.weight_scale"])
    assert torch.equal(factor, RECORDED["nvfp4.weight_scale_2"])
    decoded = decode_nvfp4(codes, scales, factor, torch.float32)
    assert torch.equal(decoded, RECORDED["nvfp4.decoded"])


@pytest.mark.parametrize(("form", "limit"), [("fp8", 0.03), ("mxfp8", 0.03), ("nvfp4", 0.1)])
def test_what_rounding_costs(form: str, limit: float) -> None:
    """Relative error over the whole matrix: 2.7 % for 8 bits, 9.4 % for 4, stated in the guide."""
    rows, columns = VALUES.shape
    error = (RECORDED[f"{form}.decoded"][:rows, :columns] - VALUES).norm() / VALUES.norm()
    assert limit / 3 < error < limit


def test_a_scale_for_each_row_and_other_codes() -> None:
    codes = torch.tensor([[1.0, -2.0], [3.0, 0.5]]).to(torch.float8_e5m2)
    expected = torch.tensor([[2.0, -4.0], [12.0, 2.0]])
    for shape in ((2,), (2, 1)):
        scale = torch.tensor([2.0, 4.0]).reshape(shape)
        assert torch.equal(decode_scaled_fp8(codes, scale, torch.float32), expected)
    written, scale = encode_scaled_fp8(torch.zeros(2, 2), torch.float8_e5m2)
    assert scale == 1.0
    assert not written.float().any()


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (129, 5), (3, 200, 7)])
def test_tiles_are_undone(shape: tuple[int, ...]) -> None:
    scales = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    tiles = to_tiles(scales)
    assert tiles.shape[-2:] == tiled_shape(*shape[-2:])
    assert torch.equal(from_tiles(tiles, *shape[-2:]), scales)


def test_a_place_in_a_tile() -> None:
    """The scale of row r, column c of a tile stands at 16 (r mod 32) + 4 (r div 32) + c."""
    scales = torch.arange(256 * 8).reshape(256, 8)
    flat = to_tiles(scales).flatten()
    row, column = 200, 6
    tile = (row // 128) * 2 + column // 4
    place = tile * 512 + 16 * (row % 32) + 4 * (row % 128 // 32) + column % 4
    assert flat[place] == scales[row, column]


@pytest.mark.parametrize("encode", [encode_scaled_fp8, encode_mxfp8, encode_nvfp4])
def test_nan_is_not_written(encode: object) -> None:
    assert callable(encode)
    with pytest.raises(ValueError, match="finite|NaN"):
        encode(torch.full((32, 32), float("nan")))
