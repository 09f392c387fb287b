"""4-bit floats (E2M1), two a byte, as MXFP4 and NVFP4 store them."""

from __future__ import annotations

import torch
from torch import Tensor

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The eight magnitudes; bit 3 of a code is the sign."""

_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def decode_fp4(packed: Tensor, dtype: torch.dtype, *, high_first: bool = False) -> Tensor:
    """Bytes → values, each byte looked up as one word that holds both.

    Args:
        packed: uint8 […, bytes].
        dtype: of the result; every floating type of 16 or 32 bits holds the values exactly.
        high_first: the earlier value is in the high nibble.

    Returns:
        […, 2 x bytes], equal to `kernels.reference.decode_fp4`.
    """
    codes = torch.arange(256, device=packed.device)
    low, high = codes & 15, codes >> 4
    magnitudes = torch.tensor(FP4_VALUES, dtype=dtype, device=packed.device)
    values = torch.cat((magnitudes, -magnitudes))
    pairs = torch.stack((values[high], values[low]) if high_first else (values[low], values[high]))
    words = pairs.T.contiguous().view(torch.int32 if dtype.itemsize == 2 else torch.int64)
    found = torch.index_select(words.flatten(), 0, packed.int().flatten())
    return found.view(dtype).view(*packed.shape[:-1], 2 * packed.shape[-1])


def nearest_codes(magnitudes: Tensor) -> Tensor:
    """Codes 0 … 7; a tie goes to the even one, as round-half-even does on the mantissa bit."""
    middles = torch.tensor(_MIDPOINTS, device=magnitudes.device)
    above = torch.bucketize(magnitudes, middles)  # a tie gives the lower code
    tie = magnitudes == middles[above.clamp(max=len(_MIDPOINTS) - 1)]
    return (above + (tie & (above % 2 == 1)).int()).to(torch.uint8)
