"""The 4-bit format: exact decoding, encoding that finds the same values again."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from petzval.kernels.fp4 import FP4_VALUES
from petzval.kernels.mxfp4 import decode_mxfp4, encode_mxfp4
from petzval.weights.mxfp4 import decode_experts, decode_state, encode_experts, encode_state
from tests.support import golden_tensors


def random_blocks(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(2, 250, shape, generator=generator).to(torch.uint8)
    return blocks, scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_code_and_the_order_of_nibbles(dtype: torch.dtype) -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    blocks = (codes | ((15 - codes) << 4))[None, None]
    for scale in (1, 120, 127, 130, 250):
        values = decode_mxfp4(blocks, torch.tensor([[scale]], dtype=torch.uint8), dtype)[0]
        table = [*FP4_VALUES, *(-v for v in FP4_VALUES)]
        expected = [
            math.ldexp(v, scale - 127) for i in range(16) for v in (table[i], table[15 - i])
        ]
        assert values.dtype == dtype
        assert values.double().tolist() == expected


def test_the_recorded_values_are_met_exactly() -> None:
    stored = golden_tensors("mxfp4.safetensors")
    for name in ("gate_up_proj", "down_proj"):
        got = decode_experts(stored[f"blocks.{name}"], stored[f"scales.{name}"], torch.float32)
        assert torch.equal(got, stored[f"dequant.{name}"])
    got = decode_experts(stored["codes.blocks"], stored["codes.scales"], torch.bfloat16)
    assert torch.equal(got.float(), stored["codes.dequant"])


def test_a_scale_of_255_is_seen_in_the_values() -> None:
    blocks = torch.full((1, 1, 16), 0x22, dtype=torch.uint8)
    values = decode_mxfp4(blocks, torch.tensor([[255]], dtype=torch.uint8), torch.float32)
    assert bool(torch.isinf(values).all())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_encoding_finds_decoded_values_again(seed: int) -> None:
    blocks, scales = random_blocks(seed, 3, 2)
    values = decode_mxfp4(blocks, scales, torch.float32)
    again = decode_mxfp4(*encode_mxfp4(values), torch.float32)
    assert torch.equal(again, values)


@given(seed=st.integers(0, 10**6), magnitude=st.floats(-30, 30))
@settings(max_examples=20, deadline=None)
def test_encoding_rounds_to_the_nearest(seed: int, magnitude: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 64, generator=generator) * 2.0**magnitude
    decoded = decode_mxfp4(*encode_mxfp4(values), torch.float32)
    largest = values.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
    # The widest gap of the grid is 2 of 6, and the largest value lies in the upper half of [3, 6].
    gap = (decoded - values).unflatten(-1, (-1, 32)).abs() / largest
    assert float(gap.max()) <= 1 / 3
    error = (decoded - values).norm() / values.norm()
    assert float(error) < 0.16


def test_ties_go_to_the_even_code() -> None:
    # The block's 6 makes the scale 1, so that the midpoints of the grid are exact ties.
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    row = torch.tensor([6.0, *ties, *(-t for t in ties), *([0.0] * 17)])[None]
    decoded = decode_mxfp4(*encode_mxfp4(row), torch.float32)[0]
    assert decoded[1:8].tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert decoded[8:15].tolist() == [-0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0]


def test_zeros_and_tiny_values() -> None:
    rows = torch.zeros(2, 32)
    rows[1, 0] = 1e-45
    decoded = decode_mxfp4(*encode_mxfp4(rows), torch.float32)
    assert decoded.abs().max() <= 1e-38


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_has_no_code_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="no code for NaN or infinity"):
        encode_mxfp4(torch.full((1, 32), bad))
    with pytest.raises(ValueError, match="multiple of 32, got 33"):
        encode_mxfp4(torch.zeros(1, 33))


def test_experts_are_transposed_and_states_replaced() -> None:
    blocks, scales = random_blocks(1, 2, 6, 3)
    experts = decode_experts(blocks, scales, torch.float32)
    assert experts.shape == (2, 96, 6)
    assert torch.equal(decode_experts(*encode_experts(experts), torch.float32), experts)
    packed = {
        "model.layers.0.mlp.experts.down_proj_blocks": blocks,
        "model.layers.0.mlp.experts.down_proj_scales": scales,
        "model.layers.0.mlp.experts.down_proj_bias": torch.zeros(2, 6),
    }
    dense = decode_state(packed, torch.float32)
    assert set(dense) == {
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.experts.down_proj_bias",
    }
    assert set(encode_state(dense)) == set(packed)
    again = decode_state(encode_state(dense), torch.float32)
    assert all(torch.equal(again[key], dense[key]) for key in dense)
