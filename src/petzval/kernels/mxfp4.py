"""MXFP4: 4-bit floats (E2M1) in blocks of 32 with one shared power of two.

OCP Microscaling Formats specification 1.0, section 5.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petzval.kernels.fp4 import decode_fp4, nearest_codes

BLOCK = 32
"""Values that share a scale."""

SCALE_BIAS = 127
NAN_SCALE = 255
"""A NaN in the standard. Decoded like any other exponent, as 2^128, which float32 cannot hold: such
a block becomes infinities and NaN. `petzval verify` reports it."""


def decode_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Packed bytes → values.

    Args:
        blocks: uint8 […, rows, columns / 32, 16]; two codes a byte, low nibble first.
        scales: uint8 […, rows, columns / 32]; exponent with bias 127.
        dtype: result type; bfloat16 and float32 hold every value exactly.

    Returns:
        […, rows, columns]. Not transposed.
    """
    decoded = decode_fp4(blocks, dtype)
    exponents = torch.arange(256, device=scales.device) - SCALE_BIAS
    powers = torch.ldexp(torch.ones(256, device=scales.device), exponents).to(dtype)
    factors = torch.index_select(powers, 0, scales.int().flatten()).view(scales.shape)
    return decoded.mul_(factors[..., None]).flatten(-2)


def encode_mxfp4(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values […, rows, columns] → (blocks, scales); columns must be a multiple of 32.

    The scale is the largest power of two that brings the block's maximum to at most 6 after
    rounding; codes are rounded to the nearest, ties to the even code. What `decode_mxfp4` gives is
    encoded to the same values again.

    Raises:
        ValueError: columns not a multiple of 32, or a value that is not finite.
    """
    if values.shape[-1] % BLOCK:
        raise ValueError(f"columns must be a multiple of {BLOCK}, got {values.shape[-1]}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("MXFP4 has no code for NaN or infinity")
    groups = values.float().contiguous().unflatten(-1, (-1, BLOCK))
    largest = groups.abs().amax(dim=-1)
    # frexp: largest = m 2^e with m in [0.5, 1). 6 = 0.75 x 2^3, so 2^(e - 3) suffices up to there.
    mantissa, exponent = torch.frexp(largest)
    exponent = exponent - 3 + (mantissa > 0.75).int()
    exponent = torch.where(largest > 0, exponent, torch.zeros_like(exponent))
    exponent = exponent.clamp(-SCALE_BIAS, NAN_SCALE - 1 - SCALE_BIAS)
    scaled = torch.ldexp(groups, -exponent[..., None])
    codes = nearest_codes(scaled.abs()) | (torch.signbit(scaled).to(torch.uint8) << 3)
    pairs = codes.unflatten(-1, (-1, 2))
    blocks = pairs[..., 0] | (pairs[..., 1] << 4)
    return blocks, (exponent + SCALE_BIAS).to(torch.uint8)
