"""8-bit floats with scales: one scale for a matrix (scaled fp8), or one for every 32 (MXFP8).

MXFP8 is OCP Microscaling Formats specification 1.0, section 5.1: E4M3 values in blocks of 32 with
one shared power of two. ComfyUI's files keep those exponents in tiles (`scale_tiles`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from petzval.kernels.mxfp4 import SCALE_BIAS
from petzval.kernels.scale_tiles import from_tiles, to_tiles

MXFP8_BLOCK = 32
"""Values that share an exponent."""


def decode_scaled_fp8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """values = codes * scale, in float32 and rounded once.

    Args:
        codes: float8_e4m3fn, float8_e5m2 or int8, any shape.
        scale: float32; one number, or one for each row ([rows] or [rows, 1]).
        dtype: result type.
    """
    factor = scale.float()
    factor = factor.reshape(()) if factor.numel() == 1 else factor.reshape(-1, 1)
    return (codes.float() * factor).to(dtype)


def encode_scaled_fp8(
    values: Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Values → (codes, scale): the scale lets the largest value be the largest code.

    Raises:
        ValueError: a value that is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise ValueError("8-bit floats are written from finite numbers only")
    largest = torch.finfo(dtype).max
    scale = values.abs().max().float() / largest
    scale = torch.where(scale > 0, scale, 1.0)
    return (values.float() / scale).clamp(-largest, largest).to(dtype), scale


def decode_mxfp8(codes: Tensor, exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """float8_e4m3fn [rows, columns] and exponents (uint8, in tiles) → [rows, columns].

    Every value is exact in bfloat16: three bits of mantissa and a power of two.
    """
    rows, columns = codes.shape
    plain = from_tiles(exponents.view(torch.uint8), rows, columns // MXFP8_BLOCK)
    ones = torch.ones(plain.shape, device=plain.device)
    powers = torch.ldexp(ones, plain.to(torch.int32) - SCALE_BIAS)
    blocks = codes.float().unflatten(-1, (-1, MXFP8_BLOCK))
    return (blocks * powers.to(codes.device)[..., None]).flatten(-2).to(dtype)


def encode_mxfp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values [rows, columns] → (codes, exponents in tiles), padded to multiples of 32 with zeros.

    A block's exponent is the smallest that brings its largest value to at most 448; a block of
    zeros has exponent 0.

    Raises:
        ValueError: a value that is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise ValueError("MXFP8 is written from finite numbers only")
    rows, columns = values.shape
    padded = F.pad(values.float(), (0, -columns % MXFP8_BLOCK, 0, -rows % MXFP8_BLOCK))
    blocks = padded.unflatten(-1, (-1, MXFP8_BLOCK))
    # frexp: largest = m 2^e with m in [0.5, 1); 448 = 0.875 x 2^9.
    largest = blocks.abs().amax(dim=-1)
    mantissa, exponent = torch.frexp(largest)
    exponent = exponent - 9 + (mantissa > 0.875).int()
    exponent = torch.where(largest > 0, exponent, -SCALE_BIAS).clamp(-SCALE_BIAS, SCALE_BIAS)
    codes = torch.ldexp(blocks, -exponent[..., None]).flatten(-2).to(torch.float8_e4m3fn)
    return codes, to_tiles((exponent + SCALE_BIAS).to(torch.uint8))
