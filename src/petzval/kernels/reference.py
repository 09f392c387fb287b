"""The slow truth: every piece of arithmetic that has a fast path, in its plainest form.

Each function here has a twin of the same signature in `kernels.fast`; tests run both on the same
inputs and benchmarks record the ratio. Nothing here is chosen for speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petzval.kernels.fp4 import FP4_VALUES
from petzval.kernels.mxfp4 import decode_mxfp4
from petzval.kernels.quantise import decode_rows, encode_float8
from petzval.kernels.sequences import FusedStream, Sequences, spread


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


def joint_qkv(
    image: FusedStream,
    text: FusedStream | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    *,
    text_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both streams' fused projections → query, key, value of the joint attention, image first.

    The projections are split into heads, query and key are normalised per head and rotated.

    Args:
        eps: of the norms.
        cos, sin: [image tokens + text tokens, d / 2].
        text_queries: False leaves the text's queries out: nobody will read its output.

    Returns:
        Query [batch, image tokens (+ text tokens), heads, d]; key and value of all tokens.
    """
    query, key, value = _split_and_norm(image, eps)
    if text is not None:
        text_query, text_key, text_value = _split_and_norm(text, eps)
        key, value = torch.cat((key, text_key), dim=1), torch.cat((value, text_value), dim=1)
        if text_queries:
            query = torch.cat((query, text_query), dim=1)
    query = rotate_interleaved(query, cos[: query.shape[1]], sin[: query.shape[1]])
    return query, rotate_interleaved(key, cos[: key.shape[1]], sin[: key.shape[1]]), value


def _split_and_norm(stream: FusedStream, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = stream.heads()
    return (
        rms_norm(query, stream.query_weight, eps),
        rms_norm(key, stream.key_weight, eps),
        value,
    )


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
    """x + gate y: the exit of both halves of a denoiser block; shapes as in `modulate`."""
    return x + spread(gate, rows) * y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up, the middle of the gated feed-forward (Shazeer 2020)."""
    return torch.nn.functional.silu(gate) * up


def encode_float8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, width] → float8 e4m3 codes of that shape and float32 scales [rows, 1]."""
    return encode_float8(x)


def float8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b with both operands in float8 e4m3, emulated: decoded, multiplied in float32.

    x [..., inputs] is encoded with one scale a row; codes [outputs, inputs] and scale [outputs, 1]
    are `quantise.encode_float8`'s. Against the product of exact operands the result has a relative
    error near 3.7 percent (root mean square) where values are normally distributed: each
    operand's rounding gives 2.6, see the tests.
    """
    x_codes, x_scale = encode_float8_rows(x.flatten(0, -2))
    product = (
        decode_rows(x_codes, x_scale, torch.float32) @ decode_rows(codes, scale, torch.float32).T
    )
    out = product.to(x.dtype) if bias is None else (product + bias.float()).to(x.dtype)
    return out.reshape(*x.shape[:-1], codes.shape[0])


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


def decode_fp4(packed: Tensor, dtype: torch.dtype, *, high_first: bool = False) -> Tensor:
    """Two codes a byte → their values, one code after the other; see `kernels.fp4`."""
    magnitudes = torch.tensor(FP4_VALUES, dtype=dtype, device=packed.device)
    values = torch.cat((magnitudes, -magnitudes))
    low, high = values[(packed & 15).int()], values[(packed >> 4).int()]
    return torch.stack((high, low) if high_first else (low, high), dim=-1).flatten(-2)


def expert_products(
    x: Tensor, chosen: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor
) -> Tensor:
    """Tokens times the MXFP4 matrices of the experts that they chose.

    x is [tokens, inputs], or [tokens, choices, inputs] with one row for each choice; chosen
    [tokens, choices]; blocks uint8 [experts, outputs, inputs / 32, 16] and scales uint8 [experts,
    outputs, inputs / 32] as `decode_mxfp4` takes them; bias [experts, outputs].

    Returns:
        [tokens, choices, outputs].
    """
    out = x.new_empty(*chosen.shape, bias.shape[1])
    for expert in range(bias.shape[0]):
        rows, slots = (chosen == expert).nonzero(as_tuple=True)
        seen = x[rows] if x.dim() == 2 else x[rows, slots]
        matrix = decode_mxfp4(blocks[expert], scales[expert], x.dtype)
        out[rows, slots] = torch.nn.functional.linear(seen, matrix, bias[expert])
    return out


def upsample_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Nearest-neighbour doubling, then a 3 x 3 convolution with padding 1."""
    doubled = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return torch.nn.functional.conv2d(doubled, weight, bias, padding=1)
