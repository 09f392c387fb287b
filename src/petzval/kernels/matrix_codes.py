"""A matrix in the codes of a quantised format: what is stored of it, and the values it stands for.

One name for each format that files come in, so that whoever keeps codes (a layer in memory) need
not know what they mean. Decoding is in float32; the arithmetic of the formats is in `fp8`, `nvfp4`,
`ggml` and `sdnq`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.kernels.fp8 import decode_mxfp8, decode_scaled_fp8
from petzval.kernels.ggml import BLOCK_FORMATS, decode_blocks
from petzval.kernels.nvfp4 import decode_nvfp4
from petzval.kernels.sdnq import SDNQ_FLOATS, SDNQ_INTEGERS, decode_sdnq, num_values


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixCodes:
    """How one matrix is stored.

    Attributes:
        kind: a key of `DECODERS`.
        shape: (rows, columns) of the matrix; what a format filled up is cut off.
        parts: (name, shape, type) of each stored tensor, codes first. Floats of 8 bits are kept as
            bytes, and scales that are calculated in their own type as integers, so that no change
            of type touches them.
    """

    kind: str
    shape: tuple[int, int]
    parts: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]

    @property
    def num_values(self) -> int:
        """Values of the matrix."""
        return self.shape[0] * self.shape[1]


def decode_matrix(form: MatrixCodes, parts: Sequence[Tensor]) -> Tensor:
    """The stored tensors, in the order of `form.parts` → float32 [rows, columns]."""
    rows, columns = form.shape
    decoded = DECODERS[form.kind](parts)
    if decoded.shape[1] != columns and decoded.numel() == form.num_values:
        return decoded.reshape(rows, columns)  # folded to fit the format
    return decoded[:rows, :columns]


def _scaled(dtype: torch.dtype) -> Callable[[Sequence[Tensor]], Tensor]:
    def decode(parts: Sequence[Tensor]) -> Tensor:
        codes = parts[0].view(dtype)
        scale = parts[1] if len(parts) > 1 else torch.ones((), device=codes.device)
        return decode_scaled_fp8(codes, scale, torch.float32)

    return decode


def _mxfp8(parts: Sequence[Tensor]) -> Tensor:
    return decode_mxfp8(parts[0].view(torch.float8_e4m3fn), parts[1], torch.float32)


def _nvfp4(parts: Sequence[Tensor]) -> Tensor:
    tiles = parts[1].view(torch.float8_e4m3fn)
    return decode_nvfp4(parts[0], tiles, parts[2], torch.float32)


def _sdnq(number: str, scales: torch.dtype) -> Callable[[Sequence[Tensor]], Tensor]:
    def decode(parts: Sequence[Tensor]) -> Tensor:
        codes, scale = parts[0], parts[1].view(scales)
        offset = parts[2].view(scales) if len(parts) > 2 else None
        columns = (num_values(number, tuple(codes.shape)) or 0) // len(scale)
        codes = codes.view(SDNQ_FLOATS[number]) if number in SDNQ_FLOATS else codes
        codes = codes.view(torch.int8) if number == "int8" else codes
        return decode_sdnq(number, codes, scale, offset, columns).float()

    return decode


def _blocks(name: str) -> Callable[[Sequence[Tensor]], Tensor]:
    return lambda parts: decode_blocks(parts[0], BLOCK_FORMATS[name])


SCALE_BITS: Mapping[torch.dtype, torch.dtype] = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
"""Types of SDNQ's scales → what they are kept as."""


def sdnq_kind(number: str, scales: torch.dtype) -> str:
    """The key of `DECODERS` for a type of number whose scales, one or more a row, have a type."""
    return f"sdnq_{number}_{str(scales).removeprefix('torch.')}"


DECODERS: Mapping[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "float8_e4m3fn": _scaled(torch.float8_e4m3fn),
    "float8_e5m2": _scaled(torch.float8_e5m2),
    "int8_tensorwise": _scaled(torch.int8),
    "mxfp8": _mxfp8,
    "nvfp4": _nvfp4,
    **{name: _blocks(name) for name in BLOCK_FORMATS},
    **{
        sdnq_kind(number, scales): _sdnq(number, scales)
        for number in (*SDNQ_INTEGERS, *SDNQ_FLOATS)
        for scales in SCALE_BITS
    },
}
"""Format → stored tensors → float32, rows and columns as stored."""
