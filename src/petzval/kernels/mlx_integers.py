"""MLX's integers: a few bits a value, with one scale and one offset for every group in a row.

Words of 32 bits are one stream, the first code in the lowest bits; codes of 3, 5 and 6 bits cross
words, and never the runs of a few bytes in which whole codes end. MLX has no name for the format
beyond "affine".
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt32
from torch import Tensor

MLX_BITS = (2, 3, 4, 5, 6, 8)
"""Widths of a code."""


def decode_mlx(
    words: UInt32[Tensor, "rows words"],
    scales: Float[Tensor, "rows groups"],
    biases: Float[Tensor, "rows groups"],
    bits: int,
    dtype: torch.dtype,
) -> Float[Tensor, "rows columns"]:
    """values = codes * scale + bias, in float32 and rounded once.

    Args:
        words: packed codes.
        scales, biases: one of each for a group of neighbours.
        bits: of a code, one of `MLX_BITS`.
        dtype: result type.
    """
    grouped = _codes(words, bits).float().reshape(*scales.shape, -1)
    values = grouped * scales.float()[..., None] + biases.float()[..., None]
    return values.flatten(-2).to(dtype)


def _codes(words: Tensor, bits: int) -> Tensor:
    """[rows, words] → integers [rows, columns]."""
    if 32 % bits:  # 24 bits hold whole codes of 3 and 6, 40 those of 5
        run = 5 if bits == 5 else 3
        pieces = words.contiguous().view(torch.uint8).unflatten(-1, (-1, run)).long()
        shifts = torch.arange(0, 8 * run, 8, device=words.device)
        runs, width = (pieces << shifts).sum(-1), 8 * run
    else:
        runs, width = words.view(torch.int32), 32
    shifts = torch.arange(0, width, bits, dtype=runs.dtype, device=words.device)
    return ((runs[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)
