"""The kernels themselves: one program of each for one row of a tensor.

All compute in float32 and round at the end, so that a result carries one rounding where the
reference has up to four. The one exception is the norm before the rotation, which is rounded where
the reference rounds it.
"""

# Triton's own types are known to its compiler alone.
# pyright: basic, reportMissingModuleSource=false
# Its language has no conditional expressions over tensors.
# ruff: noqa: SIM108

from __future__ import annotations

import triton.language as tl

from petzval.kernels.triton.source import program


@program
def split_norm_rotate(
    fused,
    query_weight,
    key_weight,
    cos,
    sin,
    query,
    key,
    value,
    num_tokens,
    start,
    num_queries,
    num_keys,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
):
    """One token of one stream, one of query, key and value: all heads of it.

    fused [batch, num_tokens, 3 HEADS 2 HALF] is read; the three others [batch, tokens, HEADS,
    2 HALF] are written from row `start` on. FIRST is 1 where no query is wanted. HEAD_BLOCK is the
    power of two that holds HEADS.
    """
    token = tl.program_id(0)
    batch = tl.program_id(1)
    part = tl.program_id(2) + FIRST
    WIDTH: tl.constexpr = 2 * HALF
    head = tl.arange(0, HEAD_BLOCK)
    column = tl.arange(0, WIDTH)
    within = head[:, None] * WIDTH + column[None, :]
    real = (head[:, None] < HEADS) & (column[None, :] < WIDTH)
    row = (batch * num_tokens + token).to(tl.int64)
    x = tl.load(fused + (row * 3 + part) * (HEADS * WIDTH) + within, mask=real, other=0.0)
    if part == 2:
        place = (batch * num_keys + start + token).to(tl.int64) * (HEADS * WIDTH)
        tl.store(value + place + within, x, mask=real)
    else:
        if part == 0:
            weight = tl.load(query_weight + column)
        else:
            weight = tl.load(key_weight + column)
        wide = x.to(tl.float32)
        mean = tl.sum(wide * wide, axis=1) / WIDTH
        normed = (wide * tl.rsqrt(mean + eps)[:, None]).to(x.dtype)
        normed = (normed.to(tl.float32) * weight.to(tl.float32)[None, :]).to(x.dtype)
        even, odd = tl.split(tl.reshape(normed.to(tl.float32), (HEAD_BLOCK, HALF, 2)))
        angle = (start + token) * HALF + tl.arange(0, HALF)
        cosine = tl.load(cos + angle)[None, :]
        sine = tl.load(sin + angle)[None, :]
        turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
        turned = tl.reshape(turned, (HEAD_BLOCK, WIDTH)).to(x.dtype)
        if part == 0:
            place = (batch * num_queries + start + token).to(tl.int64) * (HEADS * WIDTH)
            tl.store(query + place + within, turned, mask=real)
        else:
            place = (batch * num_keys + start + token).to(tl.int64) * (HEADS * WIDTH)
            tl.store(key + place + within, turned, mask=real)


@program
def sample_of(token, batch, rows, HAS_ROWS: tl.constexpr, ONE: tl.constexpr):
    """Which row of the modulation belongs to a token: its sample's; see `sequences.spread`."""
    if HAS_ROWS:
        sample = tl.load(rows + token).to(tl.int64)
    elif ONE:
        sample = (token * 0).to(tl.int64)
    else:
        sample = batch.to(tl.int64)
    return sample


@program
def norm_modulate(
    x,
    weight,
    shift,
    scale,
    rows,
    out,
    num_tokens,
    shift_stride,
    scale_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    ONE: tl.constexpr,
):
    """One token: normalised, times weight (1 + scale), plus shift."""
    token = tl.program_id(0)
    batch = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    real = column < WIDTH
    row = (batch * num_tokens + token).to(tl.int64) * WIDTH
    value = tl.load(x + row + column, mask=real, other=0.0)
    wide = value.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    sample = sample_of(token, batch, rows, HAS_ROWS, ONE)
    gain = tl.load(scale + sample * scale_stride + column, mask=real, other=0.0).to(tl.float32)
    add = tl.load(shift + sample * shift_stride + column, mask=real, other=0.0).to(tl.float32)
    times = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    result = wide * factor * times * (1.0 + gain) + add
    tl.store(out + row + column, result.to(value.dtype), mask=real)


@program
def add_gated(
    x,
    gate,
    y,
    rows,
    out,
    num_tokens,
    gate_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    ONE: tl.constexpr,
):
    """One token: x + gate y."""
    token = tl.program_id(0)
    batch = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    real = column < WIDTH
    row = (batch * num_tokens + token).to(tl.int64) * WIDTH
    value = tl.load(x + row + column, mask=real, other=0.0)
    other = tl.load(y + row + column, mask=real, other=0.0).to(tl.float32)
    sample = sample_of(token, batch, rows, HAS_ROWS, ONE)
    weight = tl.load(gate + sample * gate_stride + column, mask=real, other=0.0).to(tl.float32)
    result = value.to(tl.float32) + weight * other
    tl.store(out + row + column, result.to(value.dtype), mask=real)


@program
def silu_times(gate, up, out, count, BLOCK: tl.constexpr):
    """BLOCK values: silu(gate) up."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = place < count
    value = tl.load(gate + place, mask=real, other=0.0)
    wide = value.to(tl.float32)
    other = tl.load(up + place, mask=real, other=0.0).to(tl.float32)
    tl.store(out + place, (wide * tl.sigmoid(wide) * other).to(value.dtype), mask=real)


@program
def scale_row(x, codes, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    """One row: its scale, and its values divided by it in the codes' type."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    real = column < WIDTH
    wide = tl.load(x + row * WIDTH + column, mask=real, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(wide), axis=0) / LARGEST, 1.1754943508222875e-38)
    coded = (wide / scale).to(codes.dtype.element_ty)
    tl.store(codes + row * WIDTH + column, coded, mask=real)
    tl.store(scales + row, scale)
