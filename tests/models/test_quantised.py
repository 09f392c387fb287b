"""Quantised weights: each format's own error, what is kept in full, the stated velocity error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from petzval.inference.variants import locate
from petzval.kernels.quantise import (
    WeightFormat,
    decode_int4,
    decode_rows,
    encode_float8,
    encode_int4,
    encode_int8,
)
from petzval.models.mmdit import MMDiT
from petzval.models.quantised import BLOCK_LINEARS, QuantisedLinear, quantise
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.manifest import build_on_meta
from petzval.weights.residence import WeightReader, fill
from tests.weights.support import velocity_of

VELOCITY_ERROR = {"int8": 0.02, "float8": 0.08, "int4": 0.22}
"""Relative error of mini's velocity, root mean square; docs/guides/memory.md states it."""


def _weight(rows: int = 24, columns: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((rows, columns), generator=generator)
    return weight * torch.logspace(-3, 2, rows)[:, None]  # rows of very different size


def test_int8_is_within_half_a_step() -> None:
    weight = _weight()
    codes, scale = encode_int8(weight)
    assert (decode_rows(codes, scale, torch.float32) - weight).abs().le(0.501 * scale).all()


def test_float8_is_within_its_rounding() -> None:
    weight = _weight()
    codes, scale = encode_float8(weight)
    error = (decode_rows(codes, scale, torch.float32) - weight).abs()
    assert error.le(weight.abs() / 16 + scale * 2**-9).all()


def test_int4_is_within_half_a_level_of_its_group() -> None:
    weight = _weight()
    codes, scale, least = encode_int4(weight)
    assert codes.shape == (24, 64)
    assert codes.dtype == torch.uint8
    error = (decode_int4(codes, scale, least, torch.float32) - weight).abs().unflatten(1, (-1, 64))
    span = weight.abs().unflatten(1, (-1, 64)).amax(2, keepdim=True)
    assert error.le(0.501 * scale.float() + 0.01 * span).all()


@pytest.mark.parametrize("encode", [encode_int8, encode_float8])
def test_a_row_of_zeros_stays_zero(encode: object) -> None:
    codes, scale = encode(torch.zeros(2, 64))  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
    assert torch.equal(decode_rows(codes, scale, torch.float32), torch.zeros(2, 64))


def test_a_group_of_one_value_is_that_value() -> None:
    weight = torch.full((2, 64), 0.5)
    assert torch.allclose(decode_int4(*encode_int4(weight), torch.float32), weight)


def test_int4_wants_whole_groups_and_a_layer_falls_back() -> None:
    with pytest.raises(ValueError, match="groups of 64, got 65"):
        encode_int4(torch.zeros(2, 65))
    assert QuantisedLinear(341, 8, bias=False, format="int4").format == "int8"


@pytest.fixture(scope="module")
def mini() -> Checkpoint:
    return Checkpoint.open(locate("mini").folder)


@pytest.mark.parametrize("format", sorted(VELOCITY_ERROR))
def test_the_velocity_of_mini_is_within_the_stated_error(
    mini: Checkpoint, format: WeightFormat
) -> None:
    exact = mini.load_denoiser(torch.float32)
    expected = velocity_of(exact, (8, 8), 30)
    model = build_on_meta(mini.denoiser_config)
    assert isinstance(model, MMDiT)
    quantise(model, format)
    fill(model, WeightReader(mini.denoiser_source, torch.float32))
    error = (velocity_of(model, (8, 8), 30) - expected).square().mean().sqrt()
    relative = float(error / expected.square().mean().sqrt())
    assert VELOCITY_ERROR[format] / 6 < relative < VELOCITY_ERROR[format], relative
    block = model.transformer_blocks[0]
    assert all(isinstance(block.get_submodule(name), QuantisedLinear) for name in BLOCK_LINEARS)
    kept, stored = dict(model.named_parameters()), dict(exact.named_parameters())
    packed = {n for n, each in model.named_modules() if isinstance(each, QuantisedLinear)}
    assert {name.split(".", 2)[2] for name in packed} == set(BLOCK_LINEARS)
    # Modulation, input, output, norms and biases are as they were.
    assert kept.keys() == stored.keys() - {f"{name}.weight" for name in packed}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in kept.items())


def test_bytes_are_those_of_the_format(mini: Checkpoint, tmp_path: Path) -> None:
    del tmp_path
    sizes: dict[str, int] = {}
    for format in ("int8", "float8", "int4"):
        model = build_on_meta(mini.denoiser_config)
        assert isinstance(model, MMDiT)
        quantise(model, format)
        layer = model.transformer_blocks[0].get_submodule("img_mlp.w1")
        sizes[format] = sum(buffer.nbytes for buffer in layer.buffers())
    full = 192 * 512
    assert sizes["int8"] == sizes["float8"] == full + 4 * 512
    assert sizes["int4"] == full // 2 + full // 16
