"""MLX's integers: a few bits a value, with one scale and one offset for every group in a row.

A 32-bit word holds 32 / bits codes, the first in its lowest bits. MLX has no name for the format
beyond "affine".
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt32
from torch import Tensor

MLX_BITS = (2, 4, 8)
"""Widths whose codes do not cross words; MLX's others (3, 5, 6) do."""


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
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    codes = (words.view(torch.int32)[..., None] >> shifts) & ((1 << bits) - 1)
    grouped = codes.float().reshape(*scales.shape, -1)
    values = grouped * scales.float()[..., None] + biases.float()[..., None]
    return values.flatten(-2).to(dtype)
