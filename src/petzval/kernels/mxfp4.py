"""MXFP4 decoding: 4-bit floats in blocks of 32 with one shared power of two."""

from __future__ import annotations

import torch
from torch import Tensor

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decode_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Packed bytes → values.

    Args:
        blocks: uint8 […, rows, columns / 32, 16]; low nibble first.
        scales: uint8 […, rows, columns / 32]; exponent with bias 127.
        dtype: result type; bfloat16 and float32 hold every value exactly.

    Returns:
        […, rows, columns]. Not transposed.
    """
    table = torch.tensor(
        FP4_VALUES + tuple(-v for v in FP4_VALUES), dtype=torch.float32, device=blocks.device
    ).to(dtype)
    nibbles = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    exponents = scales.to(torch.int32)[..., None] - 127
    return torch.ldexp(table[nibbles.int()], exponents).to(dtype).flatten(-2)
