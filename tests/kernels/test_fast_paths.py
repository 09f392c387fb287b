"""Each fast path gives what its slow reference gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from petzval.kernels import dispatch, fast, reference
from petzval.kernels.mxfp4 import decode_mxfp4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(got: Tensor, expected: Tensor, limit: float = 2e-6) -> None:
    assert got.dtype == expected.dtype
    scale = expected.float().abs().max()
    assert (got.float() - expected.float()).abs().max() <= limit * max(1.0, scale.item())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rms_norms(scale: float) -> None:
    x, weight = draw(2, 5, 48) * scale, draw(48, seed=1)
    assert_close(fast.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    assert_close(
        fast.rms_norm_float32_weight(x, weight, 1e-5),
        reference.rms_norm_float32_weight(x, weight, 1e-5),
    )


def test_bfloat16_norms_round_where_the_reference_does() -> None:
    x, weight = draw(64, 48).bfloat16(), draw(48, seed=1).bfloat16()
    got, expected = fast.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6)
    assert (got != expected).float().mean() < 0.01
    assert_close(got, expected, 8e-3)
    assert_close(
        fast.rms_norm_float32_weight(x, weight, 1e-5),
        reference.rms_norm_float32_weight(x, weight, 1e-5),
        8e-3,
    )


def test_norm_and_modulation() -> None:
    x, weight = draw(3, 7, 48), draw(48, seed=1)
    shift, scale = draw(3, 48, seed=2), draw(3, 48, seed=3)
    args = (x, weight, 1e-6, shift, scale)
    assert_close(fast.rms_norm_modulate(*args), reference.rms_norm_modulate(*args))
    one = (x, weight, 1e-6, shift[:1], scale[:1])
    assert_close(fast.rms_norm_modulate(*one), reference.rms_norm_modulate(*one))


def test_interleaved_rotation_keeps_lengths_and_matches() -> None:
    x, angles = draw(2, 9, 3, 64), draw(9, 32, seed=1)
    got = fast.rotate_interleaved(x, angles.cos(), angles.sin())
    assert_close(got, reference.rotate_interleaved(x, angles.cos(), angles.sin()))
    assert_close(got.norm(dim=-1), x.norm(dim=-1))


def test_half_rotation_pairs_first_with_second_half() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 0.0])[None, None, None]
    quarter = torch.tensor([[torch.pi / 2, 0.0]])
    got = reference.rotate_half(x, quarter.cos(), quarter.sin())
    assert torch.allclose(got, torch.tensor([0.0, 0.0, 1.0, 0.0])[None, None, None], atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool) -> None:
    query, key, value = draw(2, 6, 3, 16), draw(2, 9, 3, 16, seed=1), draw(2, 9, 3, 16, seed=2)
    mask = None
    if masked:
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[1, 5:] = False
    assert_close(
        fast.attention(query, key, value, mask), reference.attention(query, key, value, mask)
    )


@pytest.mark.parametrize("masked", [False, True])
def test_attention_that_is_trained_through(masked: bool) -> None:
    """With gradients a CPU takes other products; result and gradients are the reference's."""
    mask = None
    if masked:
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[1, 5:] = False
    outcomes: list[list[Tensor]] = []
    for module in (fast, reference):
        inputs = [draw(2, n, 3, 16, seed=n + i).requires_grad_() for i, n in enumerate((6, 9, 9))]
        out = module.attention(inputs[0], inputs[1], inputs[2], mask)
        out.square().sum().backward()
        outcomes.append([out.detach(), *(x.grad for x in inputs if x.grad is not None)])
    assert len(outcomes[0]) == 4
    for got, expected in zip(*outcomes, strict=True):
        assert_close(got, expected)


def test_sink_attention_and_a_row_that_may_look_at_nothing() -> None:
    query, key, value = draw(2, 6, 5, 16), draw(2, 2, 8, 16, seed=1), draw(2, 2, 8, 16, seed=2)
    allowed = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(3)) > 0.4
    allowed[0, 0] = False
    args = (query, key, value, draw(6, seed=4), allowed)
    got = fast.sink_attention(*args)
    assert_close(got, reference.sink_attention(*args))
    assert got[0, :, 0].abs().max() == 0


def test_upsample_convolution_as_four_small_ones() -> None:
    x, weight, bias = draw(2, 4, 5, 7), draw(6, 4, 3, 3, seed=1), draw(6, seed=2)
    assert_close(
        fast.upsample_convolution(x, weight, bias),
        reference.upsample_convolution(x, weight, bias),
    )


def test_mxfp4_reads_the_low_nibble_first() -> None:
    blocks = torch.full((1, 1, 16), 0x71, dtype=torch.uint8)  # 0.5 then 6
    got = decode_mxfp4(blocks, torch.tensor([[128]], dtype=torch.uint8), torch.float32)
    assert got[0, :4].tolist() == [1.0, 12.0, 1.0, 12.0]


def test_the_reference_block_ends_where_it_says() -> None:
    x, weight = draw(4, 8).bfloat16(), draw(8).bfloat16()
    before = dispatch.rms_norm(x, weight, 1e-6)
    with dispatch.reference():
        inside = dispatch.rms_norm(x, weight, 1e-6)
    assert torch.equal(inside, reference.rms_norm(x, weight, 1e-6))
    assert torch.equal(dispatch.rms_norm(x, weight, 1e-6), before)


def test_every_choice_has_a_reason() -> None:
    choices = dispatch.describe(torch.device("cpu"))
    assert len({choice.operation for choice in choices}) == len(choices) >= 5
    assert all(choice.kernel and choice.reason for choice in choices)
