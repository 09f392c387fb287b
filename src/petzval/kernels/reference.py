"""The slow truth: every piece of arithmetic that has a fast path, in its plainest form.

Each function here has a twin of the same signature in `kernels.fast`; tests run both on the same
inputs and benchmarks record the ratio. Nothing here is chosen for speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petzval.kernels.sequences import Sequences, spread


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2, last axis) + eps) * weight, the mean taken in float32.

    The normalised value is rounded to x's dtype before it meets the weight, as Lens does.
    """
    variance = x.float().square().mean(dim=-1, keepdim=True)
    normalised = (x.float() * torch.rsqrt(variance + eps)).to(x.dtype)
    return normalised * weight.to(x.dtype)


def rms_norm_float32_weight(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm`, with the weight applied in float32 and one rounding at the end (GPT-OSS)."""
    variance = x.float().square().mean(dim=-1, keepdim=True)
    return (x.float() * torch.rsqrt(variance + eps) * weight.float()).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, rows: Tensor | None = None) -> Tensor:
    """x (1 + scale) + shift; shift and scale are [samples, width], x is [batch, tokens, width].

    A sample is a row of the batch, or with `rows` [tokens] the one that each token names.
    """
    return x * (1 + spread(scale, rows)) + spread(shift, rows)


def rms_norm_modulate(
    x: Tensor,
    weight: Tensor,
    eps: float,
    shift: Tensor,
    scale: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """Normalise, then modulate: the entrance of both halves of a denoiser block."""
    return modulate(rms_norm(x, weight, eps), shift, scale, rows)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on neighbouring pairs (x_2j, x_2j+1), in float32, cast back.

    x is [batch, tokens, heads, 2 n]; cos and sin are [tokens, n] (Lens denoiser).
    """
    pairs: Tensor = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on the pairs (x_j, x_j+n): first half against second half.

    x is [batch, heads, tokens, 2 n]; cos and sin are [tokens, n] (GPT-OSS).
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    All are [batch, tokens, heads, d]; key_mask is [batch, keys], True where a key is real.
    """
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), value)


def scaled_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """`attention` of float32 tensors; its twin computes in float16, with scaled values."""
    return attention(query, key, value, key_mask)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    """`attention` of each sample of a packed row by itself; all are [tokens, heads, d]."""
    each = [attention(*sample) for sample in sequences.each(query, key, value)]
    return torch.cat(each, dim=1)[0]


def sink_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, allowed: Tensor
) -> Tensor:
    """Grouped-query attention whose softmax has one learned extra column per head, then dropped.

    query is [batch, heads, queries, d]; key and value [batch, kv_heads, keys, d]; sinks [heads];
    allowed is [batch or 1, queries, keys], True where a query may look. A row that may look at
    nothing gives zeros, since all weight goes to the sink.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~allowed[:, None], float("-inf"))
    column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
    weights = torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]
    return weights @ value


def upsample_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Nearest-neighbour doubling, then a 3 x 3 convolution with padding 1."""
    doubled = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return torch.nn.functional.conv2d(doubled, weight, bias, padding=1)
