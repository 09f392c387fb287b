"""Each fast path gives what its slow reference gives."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from petzval.kernels import dispatch, fast, fused, reference
from petzval.kernels.fp4 import decode_fp4
from petzval.kernels.mxfp4 import decode_mxfp4
from petzval.kernels.quantise import encode_float8
from petzval.kernels.sequences import FusedStream


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


def streams(dtype: torch.dtype = torch.float32) -> tuple[FusedStream, FusedStream]:
    """Five image tokens and four text tokens of two samples, three heads of 16."""
    norms = [draw(16, seed=i).to(dtype) for i in range(4)]
    return (
        FusedStream(draw(2, 5, 3 * 3 * 16, seed=5).to(dtype), norms[0], norms[1]),
        FusedStream(draw(2, 4, 3 * 3 * 16, seed=6).to(dtype), norms[2], norms[3]),
    )


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("with_text, text_queries", [(True, True), (True, False), (False, True)])
def test_query_key_and_value_of_both_streams(
    grad: bool, with_text: bool, text_queries: bool
) -> None:
    """Written into one buffer where nobody wants a gradient, joined where somebody does."""
    image, text = streams()
    angles = draw(9, 8, seed=9)
    args = (image, text if with_text else None, 1e-6, angles.cos(), angles.sin())
    with torch.set_grad_enabled(grad):
        got = fast.joint_qkv(*args, text_queries=text_queries)
        expected = reference.joint_qkv(*args, text_queries=text_queries)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        assert_close(ours, theirs)


def test_the_joint_buffer_in_bfloat16_is_the_joined_parts() -> None:
    image, text = streams(torch.bfloat16)
    angles = draw(9, 8, seed=9)
    args = (image, text, 1e-6, angles.cos(), angles.sin())
    joined = fast.joint_qkv(*args, text_queries=True)
    with torch.no_grad():
        placed = fast.joint_qkv(*args, text_queries=True)
    assert all(torch.equal(one, other) for one, other in zip(placed, joined, strict=True))


def test_gradients_pass_through_the_joined_parts() -> None:
    angles = draw(9, 8, seed=9)
    gradients: list[list[Tensor]] = []
    for module in (fast, reference):
        image, text = streams()
        leaves = [image.fused.requires_grad_(), text.fused.requires_grad_()]
        parts = module.joint_qkv(image, text, 1e-6, angles.cos(), angles.sin(), text_queries=True)
        sum(part.square().sum() * (i + 1) for i, part in enumerate(parts)).backward()  # pyright: ignore[reportAttributeAccessIssue]
        gradients.append([leaf.grad for leaf in leaves if leaf.grad is not None])
    assert len(gradients[0]) == 2
    for got, expected in zip(*gradients, strict=True):
        assert_close(got, expected, 1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_gated_residual_and_swiglu(packed: bool) -> None:
    rows = torch.tensor([0, 0, 1, 2, 2, 2, 2]) if packed else None
    x, y, gate = draw(3, 7, 48), draw(3, 7, 48, seed=1), draw(3, 48, seed=2)
    if packed:
        x, y = x[:1], y[:1]
    args = (x, gate, y, rows)
    assert_close(fast.gated_residual(*args), reference.gated_residual(*args))
    assert_close(fast.swiglu(x, y), reference.swiglu(x, y))


def test_a_float8_product_is_its_emulation_within_the_result_types_rounding() -> None:
    x, weight, bias = draw(3, 7, 64).bfloat16(), draw(48, 64, seed=1), draw(48, seed=2)
    codes, scale = encode_float8(weight)
    for offset in (None, bias.bfloat16()):
        got = fast.float8_linear(x, codes, scale, offset)
        assert_close(got, reference.float8_linear(x, codes, scale, offset), 1e-2)


def test_the_error_of_a_float8_product_is_what_its_reference_states() -> None:
    x, weight = draw(256, 1024), draw(128, 1024, seed=1)
    exact = x @ weight.T
    got = reference.float8_linear(x, *encode_float8(weight), None)
    assert 0.030 < float((got - exact).norm() / exact.norm()) < 0.040
    only_weight = dispatch.float8_linear(x, *encode_float8(weight), None)  # a CPU decodes
    assert 0.020 < float((only_weight - exact).norm() / exact.norm()) < 0.030


def test_a_kernel_that_differs_from_its_reference_is_not_used() -> None:
    good = ("good", torch.ones(3), torch.ones(3) + 1e-7)
    assert fused.verdict([good], 1e-5)[0]
    for wrong in (torch.ones(3) * 1.1, torch.full((3,), torch.nan)):
        usable, reason = fused.verdict([good, ("swiglu", wrong, torch.ones(3))], 1e-5)
        assert not usable
        assert "swiglu differs from its reference" in reason


def test_fused_kernels_say_why_they_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert fused.triton_ready(cpu, torch.bfloat16) == (
        False,
        "Triton's kernels are for CUDA, this is cpu",
    )
    assert not fused.float8_ready(cpu, torch.bfloat16)[0]
    monkeypatch.setenv(fused.SWITCH, "0")
    assert fused.triton_ready(torch.device("cuda"), torch.bfloat16) == (
        False,
        "PETZVAL_TRITON is 0",
    )


@pytest.mark.gpu
def test_this_gpu_runs_the_fused_kernels_and_float8_where_it_should() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    for dtype in (torch.float32, torch.bfloat16):
        usable, reason = fused.triton_ready(device, dtype)
        assert usable == (capability >= fused.TRITON_CAPABILITY), reason
    usable, reason = fused.float8_ready(device, torch.bfloat16)
    assert usable == (capability >= fused.FLOAT8_CAPABILITY), reason


@pytest.mark.gpu
@torch.no_grad()
def test_joint_attention_of_a_gpu_takes_a_fused_kernel() -> None:
    """Without a mask; torch's plain form is closed to it here, so that it would fail."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    image, text = (
        FusedStream(*(part.cuda().bfloat16() for part in stream)) for stream in streams()
    )
    angles = draw(9, 8, seed=9).cuda()
    parts = dispatch.joint_qkv(image, text, 1e-6, angles.cos(), angles.sin(), text_queries=True)
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
        got = dispatch.attention(*parts)
    assert_close(got, reference.attention(*parts), 2e-2)


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


def test_collapsed_weights_are_rounded_once() -> None:
    """One more rounding, of the weights: at most 2 ** 0.5 times the error, as in the gradients."""
    inputs = draw(2, 16, 8, 8), draw(16, 16, 3, 3, seed=1), draw(16, seed=2)
    low = [x.bfloat16().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in low]
    grown = draw(2, 16, 16, 16, seed=3).bfloat16()

    def errors(way: ModuleType) -> list[float]:
        truth = reference.upsample_convolution(*exact)
        got = way.upsample_convolution(*low)
        wanted = (truth.detach(), *torch.autograd.grad(truth, exact, grown.double()))
        found = (got.detach(), *torch.autograd.grad(got, low, grown))
        return [float((a - b).norm() / a.norm()) for a, b in zip(wanted, found, strict=True)]

    for fast_error, own_error in zip(errors(fast), errors(reference), strict=True):
        assert fast_error < 1.5 * own_error


def test_a_doubled_picture_keeps_its_channels_last() -> None:
    x, weight, bias = draw(2, 4, 5, 7), draw(6, 4, 3, 3, seed=1), draw(6, seed=2)
    last = (x.to(memory_format=torch.channels_last), weight, bias)
    got = fast.upsample_convolution(*last)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert fast.upsample_convolution(x, weight, bias).is_contiguous()
    assert_close(got, reference.upsample_convolution(x, weight, bias))


def test_mxfp4_reads_the_low_nibble_first() -> None:
    blocks = torch.full((1, 1, 16), 0x71, dtype=torch.uint8)  # 0.5 then 6
    got = decode_mxfp4(blocks, torch.tensor([[128]], dtype=torch.uint8), torch.float32)
    assert got[0, :4].tolist() == [1.0, 12.0, 1.0, 12.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("high_first", [False, True])
def test_every_pair_of_4_bit_floats(dtype: torch.dtype, high_first: bool) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(4, 64)
    every = torch.cat((every, every.flip(0)), dim=1)[:, 3:]  # neither aligned nor contiguous
    got = decode_fp4(every, dtype, high_first=high_first)
    expected = reference.decode_fp4(every, dtype, high_first=high_first)
    assert got.dtype == dtype
    assert torch.equal(got, expected)


def test_the_reference_block_ends_where_it_says() -> None:
    x, weight = draw(4, 8).bfloat16(), draw(8).bfloat16()
    before = dispatch.rms_norm(x, weight, 1e-6)
    with dispatch.reference():
        inside = dispatch.rms_norm(x, weight, 1e-6)
    assert torch.equal(inside, reference.rms_norm(x, weight, 1e-6))
    assert torch.equal(dispatch.rms_norm(x, weight, 1e-6), before)


@pytest.mark.parametrize("collapsing", [("cpu",), ()])
def test_the_doubling_that_is_named_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, collapsing: tuple[str, ...]
) -> None:
    monkeypatch.setattr(dispatch, "COLLAPSING", collapsing)
    x, weight, bias = torch.randn(1, 8, 5, 6), torch.randn(4, 8, 3, 3), torch.randn(4)
    chosen, other = (fast, reference) if collapsing else (reference, fast)
    got = dispatch.upsample_convolution(x, weight, bias)
    assert torch.equal(got, chosen.upsample_convolution(x, weight, bias))
    assert not torch.equal(got, other.upsample_convolution(x, weight, bias))
    named = {c.operation: c.kernel for c in dispatch.describe(torch.device("cpu"))}
    assert ("2x2" in named["upsampling convolution"]) == bool(collapsing)


def test_every_choice_has_a_reason() -> None:
    choices = dispatch.describe(torch.device("cpu"))
    assert len({choice.operation for choice in choices}) == len(choices) >= 5
    assert all(choice.kernel and choice.reason for choice in choices)
