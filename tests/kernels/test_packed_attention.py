"""Attention within samples: every way gives what the loop over samples gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from petzval.kernels import dispatch, fast, reference, varlen
from petzval.kernels.sequences import Sequences, spread

QUERIES, KEYS = (5, 1, 8, 3), (7, 1, 8, 9)


def inputs(
    device: str = "cpu", dtype: torch.dtype = torch.float32, *, trained: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = (sum(QUERIES), sum(KEYS), sum(KEYS))
    query, key, value = (
        torch.randn(n, 3, 16, generator=generator).to(device, dtype).requires_grad_(trained)
        for n in lengths
    )
    return query, key, value


def gradients(out: Tensor, drawn: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return list(torch.autograd.grad((out.float() * weights).sum(), drawn))


def test_a_token_sees_its_own_sample_alone() -> None:
    """The reference itself, against one attention over all tokens with a mask of samples."""
    query, key, value = inputs()
    query_sample = torch.arange(4).repeat_interleave(torch.tensor(QUERIES))
    key_sample = torch.arange(4).repeat_interleave(torch.tensor(KEYS))
    scores = torch.einsum("qhd,khd->hqk", query, key) / 4
    scores = scores.masked_fill(query_sample[:, None] != key_sample[None, :], float("-inf"))
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    got = reference.packed_attention(query, key, value, Sequences.of(QUERIES, KEYS))
    assert (got - expected).abs().max() <= 2e-6


def test_one_sample_at_a_time_forward_and_backward() -> None:
    drawn = inputs()
    sequences = Sequences.of(QUERIES, KEYS)
    got = fast.packed_attention(*drawn, sequences)
    expected = reference.packed_attention(*drawn, sequences)
    assert (got - expected).abs().max() <= 2e-6
    for one, other in zip(gradients(got, drawn), gradients(expected, drawn), strict=True):
        assert (one - other).abs().max() <= 2e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_mask_of_flex_attention_is_that_of_the_samples() -> None:
    drawn, sequences = inputs(trained=False), Sequences.of(QUERIES, KEYS)
    got = varlen.flex(*drawn, sequences)
    expected = reference.packed_attention(*drawn, sequences)
    assert (got - expected).abs().max() <= 2e-6
    assert sequences.block_mask is sequences.block_mask


def test_a_cpu_takes_one_sample_at_a_time_and_says_why() -> None:
    way, reason = varlen.choose(torch.device("cpu"), torch.bfloat16)
    assert way == "one sample at a time"
    assert "cannot be trained through" in reason
    shown = {c.operation: c for c in dispatch.describe(torch.device("cpu"))}
    assert shown["packed attention"].kernel == way


def test_the_dispatcher_runs_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_here(*_: object) -> None:
        raise AssertionError("the fast path ran")

    drawn, sequences = inputs(), Sequences.of(QUERIES, KEYS)
    expected = dispatch.packed_attention(*drawn, sequences)
    monkeypatch.setattr(fast, "packed_attention", not_here)
    with dispatch.reference():
        assert (dispatch.packed_attention(*drawn, sequences) - expected).abs().max() <= 2e-6
    with pytest.raises(AssertionError, match="the fast path ran"):
        dispatch.packed_attention(*drawn, sequences)


def test_values_are_spread_over_the_tokens_of_their_sample() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert spread(values, None).shape == (2, 1, 2)
    rows = torch.tensor([1, 0, 0])
    assert spread(values, rows).tolist() == [[3.0, 4.0], [1.0, 2.0], [1.0, 2.0]]


def test_norm_and_modulation_by_sample() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(1, 7, 48, generator=generator), torch.randn(48, generator=generator)
    shift, scale = torch.randn(2, 3, 48, generator=generator)
    rows = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    expected = torch.cat(
        [
            reference.rms_norm_modulate(part, weight, 1e-6, shift[i : i + 1], scale[i : i + 1])
            for i, part in enumerate(x.split([2, 3, 2], dim=1))
        ],
        dim=1,
    )
    for module in (fast, reference, dispatch):
        got = module.rms_norm_modulate(x, weight, 1e-6, shift, scale, rows)
        assert (got - expected).abs().max() <= 1e-5


def test_lengths_that_cannot_be_are_refused() -> None:
    for lengths in ((3, 0), (3,), (3, -1)):
        with pytest.raises(ValueError, match="at least one query and one key"):
            Sequences.of(lengths, (3, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("way", [varlen.flash, varlen.flex])
def test_the_packed_kernels_on_a_gpu(
    way: Callable[[Tensor, Tensor, Tensor, Sequences], Tensor],
) -> None:
    sequences = Sequences.of(QUERIES, KEYS, "cuda")
    drawn = inputs("cuda", torch.bfloat16)
    exact = inputs("cuda")
    expected = reference.packed_attention(*exact, sequences)
    got = way(*drawn, sequences)
    assert (got.float() - expected).abs().max() <= 0.03
    for one, other in zip(gradients(got, drawn), gradients(expected, exact), strict=True):
        assert (one.float() - other).abs().max() <= 0.05 * other.abs().max()


@pytest.mark.gpu
def test_a_gpu_runs_flash_attention_in_half_precision_and_flex_otherwise() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    half, _ = varlen.choose(device, torch.bfloat16)
    whole, reason = varlen.choose(device, torch.float32)
    modern = torch.cuda.get_device_capability() >= varlen.FLASH_CAPABILITY
    assert half == ("varlen_attn" if modern else "flex_attention")
    assert whole == "flex_attention"
    assert "float32" in reason
