"""A mixture of experts on MXFP4 weights as they lie in the file: decoded in registers, once a tile.

What bounds the work is reading the weights: of a prompt's tokens each expert gets a handful.
"""

# Triton's own types are known to its compiler alone.
# pyright: basic, reportMissingModuleSource=false

from __future__ import annotations

import triton.language as tl

from petzval.kernels.triton.source import program


@program
def decoded(code, scale):
    """E2M1 codes 0 … 15 times their block's power of two, in float32; exact in bfloat16, too."""
    size = code & 7
    # Above 1 the bits are those of a float whose exponent counts from 126; below, a half or zero.
    normal = ((size.to(tl.int32) << 22) + (126 << 23)).to(tl.float32, bitcast=True)
    magnitude = tl.where(size < 2, size.to(tl.float32) * 0.5, normal)
    signed = tl.where(code > 7, -magnitude, magnitude)
    # Exponent 0 stands for 2^-127, next to nothing, and counts as nothing here; 255 is infinite.
    factor = (scale.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    return signed * factor


@program
def expert_tile(
    x,
    order,
    starts,
    tile_expert,
    tile_first,
    blocks,
    scales,
    bias,
    out,
    num_columns,
    plane,
    NUM_BYTES: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    SLOTS_PER_ROW: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """COLUMNS outputs of one expert for ROWS of the slots that chose it.

    x is [2, rows, NUM_BYTES], the even inputs before the odd ones, as a byte holds one of each;
    `plane` is the distance of the two. out [slots, num_columns]; slot s reads row
    s // SLOTS_PER_ROW. WIDE multiplies in float32. A tile whose expert is NUM_EXPERTS has no work.
    """
    tile = tl.program_id(1)
    expert = tl.load(tile_expert + tile)
    if expert < NUM_EXPERTS:
        first = tl.load(tile_first + tile)
        stop = tl.load(starts + expert + 1)
        place = first + tl.arange(0, ROWS)
        taken = place < stop
        slot = tl.load(order + place, mask=taken, other=0)
        row = (slot // SLOTS_PER_ROW).to(tl.int64) * NUM_BYTES
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        wanted = column < num_columns
        line = expert.to(tl.int64) * num_columns + column
        total = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
        for start in range(0, NUM_BYTES, BYTES):
            byte = start + tl.arange(0, BYTES)
            inside = byte < NUM_BYTES
            real = wanted[:, None] & inside[None, :]
            pair = tl.load(blocks + line[:, None] * NUM_BYTES + byte[None, :], mask=real, other=0)
            group = start // 16 + tl.arange(0, BYTES // 16)
            scale = tl.load(
                scales + line[:, None] * (NUM_BYTES // 16) + group[None, :],
                mask=wanted[:, None] & (group < NUM_BYTES // 16)[None, :],
                other=0,
            )
            spread = tl.broadcast_to(scale[:, :, None], (COLUMNS, BYTES // 16, 16))
            spread = tl.reshape(spread, (COLUMNS, BYTES))
            seen = inside[:, None] & taken[None, :]
            even = tl.load(x + row[None, :] + byte[:, None], mask=seen, other=0.0)
            odd = tl.load(x + plane + row[None, :] + byte[:, None], mask=seen, other=0.0)
            low, high = decoded(pair & 15, spread), decoded(pair >> 4, spread)
            if WIDE:
                even, odd = even.to(tl.float32), odd.to(tl.float32)
                total = tl.dot(low, even, total, input_precision="ieee")
                total = tl.dot(high, odd, total, input_precision="ieee")
            else:
                total = tl.dot(low.to(even.dtype), even, total)
                total = tl.dot(high.to(odd.dtype), odd, total)
        added = tl.load(bias + line, mask=wanted, other=0.0).to(tl.float32)
        total += added[:, None]
        target = out + slot.to(tl.int64)[None, :] * num_columns + column[:, None]
        tl.store(target, total.to(out.dtype.element_ty), mask=wanted[:, None] & taken[None, :])
