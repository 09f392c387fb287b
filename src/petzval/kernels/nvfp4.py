"""NVFP4: 4-bit floats (E2M1), an E4M3 scale for every 16 of them, a float32 scale for all.

In ComfyUI's files two codes share a byte, the first in the high nibble (MXFP4 has it in the low
one), and the scales lie in tiles (`scale_tiles`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from petzval.kernels.fp4 import decode_fp4, nearest_codes
from petzval.kernels.scale_tiles import from_tiles, to_tiles

NVFP4_BLOCK = 16
"""Values that share an E4M3 scale."""

_LARGEST_CODE, _LARGEST_SCALE = 6.0, 448.0


def decode_nvfp4(codes: Tensor, scales: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Packed bytes → values; every product is taken in float32 and rounded once.

    Args:
        codes: uint8 [rows, columns / 2]; the high nibble is the earlier column.
        scales: float8_e4m3fn in tiles, of [rows, columns / 16].
        factor: float32, one number.
        dtype: result type.

    Returns:
        [rows, columns].
    """
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    decoded = decode_fp4(codes, torch.float32, high_first=True)
    # Bytes are moved about and not floats: few operations know float8.
    plain = from_tiles(scales.view(torch.uint8), rows, columns // NVFP4_BLOCK).contiguous()
    total = plain.view(torch.float8_e4m3fn).float() * factor.float().reshape(())
    blocks = decoded.unflatten(-1, (-1, NVFP4_BLOCK))
    return (blocks * total[..., None]).flatten(-2).to(dtype)


def encode_nvfp4(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [rows, columns] → (codes, scales in tiles, factor).

    The factor lets the largest value use the largest scale; each block's scale lets its largest
    value be 6; codes are rounded to the nearest, ties to the even one. Rows and columns are padded
    with zeros to multiples of 16, as the format wants.

    Raises:
        ValueError: a value that is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise ValueError("NVFP4 has no code for NaN or infinity")
    rows, columns = values.shape
    padded = F.pad(values.float(), (0, -columns % NVFP4_BLOCK, 0, -rows % NVFP4_BLOCK))
    factor = padded.abs().max() / (_LARGEST_SCALE * _LARGEST_CODE)
    blocks = padded.unflatten(-1, (-1, NVFP4_BLOCK))
    wanted = blocks.abs().amax(dim=-1) / _LARGEST_CODE / factor
    scales = wanted.nan_to_num(0.0).clamp(max=_LARGEST_SCALE).to(torch.float8_e4m3fn)
    total = scales.float() * factor
    scaled = torch.where(total[..., None] > 0, blocks / total[..., None], 0.0)
    scaled = scaled.clamp(-_LARGEST_CODE, _LARGEST_CODE).flatten(-2)
    codes = nearest_codes(scaled.abs()) | (torch.signbit(scaled).to(torch.uint8) << 3)
    pairs = codes.unflatten(-1, (-1, 2))
    tiles = to_tiles(scales.view(torch.uint8)).view(torch.float8_e4m3fn)
    return (pairs[..., 0] << 4) | pairs[..., 1], tiles, factor
