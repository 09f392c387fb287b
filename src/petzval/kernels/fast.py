"""The fast paths in portable PyTorch; each has the signature of its twin in `reference`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from petzval.kernels import reference as slow
from petzval.kernels import varlen
from petzval.kernels.quantise import encode_float8
from petzval.kernels.sequences import FusedStream, Sequences, spread


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Fused normalisation; same rounding points as the reference in every dtype."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)
    return F.rms_norm(x, (x.shape[-1],), None, eps) * weight.to(x.dtype)


def rms_norm_float32_weight(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """GPT-OSS normalisation; the fused kernel keeps float32 inside."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight.float(), eps)
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)


def rms_norm_modulate(
    x: Tensor,
    weight: Tensor,
    eps: float,
    shift: Tensor,
    scale: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """One pass: the norm's weight is folded into (1 + scale), which is per picture and small."""
    gain = weight.to(scale.dtype) * (1 + scale)
    normalised = F.rms_norm(x, (x.shape[-1],), None, eps)
    return torch.addcmul(spread(shift, rows), normalised, spread(gain, rows))


def has_complex(device: torch.device) -> bool:
    """Whether a device multiplies complex numbers."""
    return device.type != "mps"


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotation as one complex product in float32."""
    paired: Tensor = x.float().unflatten(-1, (-1, 2))
    pairs = torch.view_as_complex(paired)
    return torch.view_as_real(pairs * torch.complex(cos, sin)[:, None, :]).flatten(-2).to(x.dtype)


def joint_qkv(
    image: FusedStream,
    text: FusedStream | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    *,
    text_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each stream is written where it belongs in one buffer: nothing is concatenated.

    Where gradients are wanted the parts are joined, and a compiler does the same by itself.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not has_complex(cos.device):
        return _joined_qkv(image, text, eps, cos, sin, text_queries)
    batch, num_image = image.fused.shape[:2]
    num_text = 0 if text is None else text.fused.shape[1]
    heads = image.fused.shape[2] // (3 * image.query_weight.shape[0])
    shape = (heads, image.query_weight.shape[0])
    num_queries = num_image + (num_text if text_queries else 0)
    query = image.fused.new_empty(batch, num_queries, *shape)
    key = image.fused.new_empty(batch, num_image + num_text, *shape)
    value = torch.empty_like(key)
    turn = torch.complex(cos, sin)[:, None, :]
    for stream, start in ((image, 0), (text, num_image)):
        if stream is None:
            continue
        its_query, its_key, its_value = stream.heads()
        place = slice(start, start + its_key.shape[1])
        value[:, place] = its_value
        _rotate_into(key[:, place], rms_norm(its_key, stream.key_weight, eps), turn[place])
        if start < num_queries:
            its_query = rms_norm(its_query, stream.query_weight, eps)
            _rotate_into(query[:, place], its_query, turn[place])
    return query, key, value


def _joined_qkv(
    image: FusedStream,
    text: FusedStream | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    text_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # Complex numbers are what the compiler has no code of its own for.
    plain = torch.compiler.is_compiling() or not has_complex(cos.device)
    rotate = slow.rotate_interleaved if plain else rotate_interleaved
    query, key, value = image.heads()
    query, key = rms_norm(query, image.query_weight, eps), rms_norm(key, image.key_weight, eps)
    if text is not None:
        text_query, text_key, text_value = text.heads()
        key = torch.cat((key, rms_norm(text_key, text.key_weight, eps)), dim=1)
        value = torch.cat((value, text_value), dim=1)
        if text_queries:
            query = torch.cat((query, rms_norm(text_query, text.query_weight, eps)), dim=1)
    query = rotate(query, cos[: query.shape[1]], sin[: query.shape[1]])
    return query, rotate(key, cos[: key.shape[1]], sin[: key.shape[1]]), value


def _rotate_into(out: Tensor, x: Tensor, turn: Tensor) -> None:
    paired: Tensor = x.float().unflatten(-1, (-1, 2))
    pairs = torch.view_as_complex(paired)
    if out.dtype == torch.float32:
        room: Tensor = out.unflatten(-1, (-1, 2))
        torch.mul(pairs, turn, out=torch.view_as_complex(room))
    else:  # one pass rounds and places
        out.copy_(torch.view_as_real(pairs * turn).flatten(-2))


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
    """One pass, and one rounding in place of two."""
    return torch.addcmul(x, spread(gate, rows), y)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `kernels.reference.swiglu`; a compiler fuses the two."""
    return F.silu(gate) * up


def encode_float8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.reference.encode_float8_rows`."""
    return encode_float8(x)


def float8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The matrix units' own float8 product, scaled by rows; see `kernels.float8` for where.

    Sums are kept as the hardware keeps them ("fast accumulation").
    """
    return scaled_product(*encode_float8_rows(x.flatten(0, -2)), codes, scale, bias, x)


def scaled_product(
    x_codes: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, x: Tensor
) -> Tensor:
    """The product of encoded operands in the shape and type that belong to the input `x`."""
    out: Tensor = torch._scaled_mm(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        x_codes,
        codes.t(),
        scale_a=x_scale,
        scale_b=scale.t(),
        bias=None if bias is None else bias.to(x.dtype),
        out_dtype=x.dtype,
        use_fast_accum=x.is_cuda,
    )
    return out.reshape(*x.shape[:-1], codes.shape[0])


def attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Fused scaled-dot-product attention; without a mask the flash kernels are open to it."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if query.device.type == "cpu" and query.requires_grad:
        return _differentiable_attention(query, key, value, mask).transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def scaled_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """float32 in and out, float16 inside: a head's values are scaled by a power of two, exactly.

    What attention gives lies between the least and the largest value, so nothing overflows; query
    and key are normalised before.
    """
    scale = power_of_two_above(value.abs().amax(dim=(1, 3), keepdim=True))
    out = attention(query.half(), key.half(), (value / scale).half(), key_mask)
    return out.float() * scale


def power_of_two_above(largest: Tensor) -> Tensor:
    """The least power of two above each float32 value, exact, up to 2^127; 1 for zero.

    By the exponent's bits: MPS has no `frexp`, and powers are not exact on every device.
    """
    exponent = (largest.view(torch.int32) >> 23) & 255
    scale = ((exponent + 1).clamp(max=254) << 23).view(torch.float32)
    return torch.where(largest > 0, scale, torch.ones_like(scale))


def _differentiable_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """Plain products for training on a CPU, where the fused kernel's backward pass is slow.

    Forward and backward at 104 tokens of 4 x 64 in bfloat16: 0.05 s against 0.18 s a batch of 64.
    """
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(value.dtype) @ value


def packed_attention(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    """One fused kernel for all samples on CUDA; `attention` of one after the other elsewhere."""
    way, _ = varlen.choose(value.device, value.dtype)
    if way == "varlen_attn":
        return varlen.flash(query, key, value, sequences)
    if way == "flex_attention":
        return varlen.flex(query, key, value, sequences)
    each = [attention(*sample) for sample in sequences.each(query, key, value)]
    return torch.cat(each, dim=1)[0]


def sink_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, allowed: Tensor
) -> Tensor:
    """The sink as one more key: its vector is zero, its bias is the sink, its value is zero.

    Exact, since q . 0 + sink is the sink's logit and the column adds weight times zero.
    """
    batch, num_heads, num_queries, width = query.shape
    groups = num_heads // key.shape[1]
    nothing = key.new_zeros(batch, key.shape[1], 1, width)
    key, value = torch.cat((key, nothing), dim=2), torch.cat((value, nothing), dim=2)
    bias = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device)
    bias = bias.masked_fill_(~allowed, float("-inf"))[:, None].expand(-1, num_heads, -1, -1)
    column = sinks.to(query.dtype)[None, :, None, None].expand(bias.shape[0], -1, num_queries, 1)
    bias = torch.cat((bias, column), dim=-1)
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def upsample_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Doubling and 3 x 3 convolution as four 2 x 2 convolutions on the small picture.

    Each output parity sees only 2 x 2 distinct inputs, so the nine taps collapse to four per
    parity: 16 products per small pixel in place of 36, the same sum up to rounding. Weights of
    half precision are added in float32 and rounded once.
    """
    taps = weight.to(torch.promote_types(weight.dtype, torch.float32))
    rows = torch.stack((_collapse(taps, 2, 0), _collapse(taps, 2, 1)))
    kernels = torch.stack([_collapse(rows[p], 3, q) for p in (0, 1) for q in (0, 1)])
    kernels = kernels.to(weight.dtype)
    num_out = weight.shape[0]
    stacked = F.conv2d(x, kernels.flatten(0, 1), bias.repeat(4), padding=1)
    height, width = x.shape[-2:]
    parts: Tensor = stacked.unflatten(1, (2, 2, num_out))
    out = x.new_empty(x.shape[0], num_out, 2 * height, 2 * width)
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        out = out.to(memory_format=torch.channels_last)  # else all that follows is laid out anew
    for p in (0, 1):
        for q in (0, 1):
            out[:, :, p::2, q::2] = parts[:, p, q, :, p : p + height, q : q + width]
    return out


def _collapse(weight: Tensor, axis: int, parity: int) -> Tensor:
    """Three taps on a doubled axis as two taps on the small one, for one output parity.

    Even outputs see (previous, own, own), odd ones (own, own, next).
    """
    first, second, third = weight.unbind(axis)
    taps = (first, second + third) if parity == 0 else (first + second, third)
    return torch.stack(taps, dim=axis)
