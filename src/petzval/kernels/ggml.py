"""The block formats of GGUF files, decoded: bytes → values, one function a format.

A block is a run of values of one row with its own scale. In every format here a value is
scale * code, or scale * code - minimum; what differs is how codes and scales share the bytes
(ggml's `block_*` structures). Everything is computed in float32, as ggml itself does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.kernels.mxfp4 import decode_mxfp4


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFormat:
    """One format.

    Attributes:
        name: as ggml spells it.
        num_values, num_bytes: of a block.
        decode: uint8 [N, num_bytes] → float32 [N, num_values].
        halves: (first byte, end) of a block's float16 scales; None where its scale is an exponent.
    """

    name: str
    num_values: int
    num_bytes: int
    decode: Callable[[Tensor], Tensor]
    halves: tuple[int, int] | None


def decode_blocks(raw: Tensor, form: BlockFormat) -> Tensor:
    """uint8 […, bytes of a row] → float32 […, values of a row]."""
    blocks = raw.unflatten(-1, (-1, form.num_bytes))
    return form.decode(blocks.flatten(0, -2)).reshape(*raw.shape[:-1], -1)


def has_finite_scales(raw: Tensor, form: BlockFormat) -> bool:
    """Whether all values are numbers, told from the scales alone where they are float16."""
    blocks = raw.reshape(-1, form.num_bytes)
    if form.halves is None:
        return bool(torch.isfinite(form.decode(blocks)).all())
    first, end = form.halves
    return bool(torch.isfinite(_half(blocks[:, first:end])).all())


def _half(two_bytes: Tensor) -> Tensor:
    """uint8 [N, 2 k] → float32 [N, k]."""
    return two_bytes.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [N, k] → [N, 2 k]: all low nibbles, then all high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """uint8 [N, 4], a bit for each of 32 values → [N, 32] of 0 or 16."""
    bits = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> bits) & 1).flatten(-2) << 4


def decode_q4_0(blocks: Tensor) -> Tensor:
    """float16 scale, 16 bytes of codes 0 … 15 that mean -8 … 7."""
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).float() - 8)


def decode_q4_1(blocks: Tensor) -> Tensor:
    """float16 scale and offset, 16 bytes of codes."""
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]).float() + _half(blocks[:, 2:4])


def decode_q5_0(blocks: Tensor) -> Tensor:
    """float16 scale, 32 fifth bits, 16 bytes of low nibbles; codes mean -16 … 15."""
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks[:, :2]) * (codes.float() - 16)


def decode_q5_1(blocks: Tensor) -> Tensor:
    """float16 scale and offset, 32 fifth bits, 16 bytes of low nibbles."""
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks[:, :2]) * codes.float() + _half(blocks[:, 2:4])


def decode_q8_0(blocks: Tensor) -> Tensor:
    """float16 scale, 32 signed bytes."""
    return _half(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [N, 12] → scales and minima [N, 8], six bits each.

    The first four of both are whole; the upper two bits of the others hide in the first ones.
    """
    first, second, rest = packed.split(4, dim=-1)
    scales = torch.cat((first & 63, (rest & 15) | ((first >> 6) << 4)), dim=-1)
    minima = torch.cat((second & 63, (rest >> 4) | ((second >> 6) << 4)), dim=-1)
    return scales.float(), minima.float()


def _k_quant(blocks: Tensor, codes: Tensor) -> Tensor:
    """Eight sub-blocks of 32 with a scale and a minimum each; codes [N, 8, 32]."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    scale, minimum = _half(blocks[:, :2]) * scales, _half(blocks[:, 2:4]) * minima
    return (scale[..., None] * codes.float() - minimum[..., None]).flatten(1)


def _nibbles_by_32(packed: Tensor) -> Tensor:
    """uint8 [N, 128] → [N, 8, 32]: 32 low nibbles of 32 bytes, then their high ones, and so on."""
    groups = packed.unflatten(-1, (4, 32))
    return torch.stack((groups & 15, groups >> 4), dim=2).flatten(1, 2)


def decode_q4_k(blocks: Tensor) -> Tensor:
    """256 values: two float16, eight 6-bit scales and minima, 4-bit codes."""
    return _k_quant(blocks, _nibbles_by_32(blocks[:, 16:]))


def decode_q5_k(blocks: Tensor) -> Tensor:
    """As Q4_K, with a fifth bit for each code: bit s of 32 bytes belongs to sub-block s."""
    bits = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = ((blocks[:, None, 16:48] >> bits) & 1) << 4
    return _k_quant(blocks, _nibbles_by_32(blocks[:, 48:]) | fifth)


def decode_q6_k(blocks: Tensor) -> Tensor:
    """256 values: 4 low bits, 2 high bits, sixteen signed 8-bit scales, one float16."""
    low = blocks[:, :128].unflatten(-1, (2, 64))
    low = torch.stack((low & 15, low >> 4), dim=2).flatten(1)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    high = ((blocks[:, 128:192].unflatten(-1, (2, 1, 32)) >> shifts) & 3).flatten(1)
    codes = (low | (high << 4)).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    scale = _half(blocks[:, 208:210]) * scales
    return (scale[..., None] * codes.unflatten(-1, (16, 16))).flatten(1)


def mxfp4_parts(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 […, 17] → (blocks […, 16], scales […]) as published MXFP4 tensors have them.

    ggml puts value j into the low and value j + 16 into the high nibble of byte j; the published
    layout puts two neighbours into a byte. No bit is lost, so the inverse exists.
    """
    codes = torch.cat((blocks[..., 1:] & 15, blocks[..., 1:] >> 4), dim=-1)
    pairs = codes.unflatten(-1, (16, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4), blocks[..., 0]


def decode_mxfp4_blocks(blocks: Tensor) -> Tensor:
    """One exponent, 16 bytes of E2M1 codes."""
    packed, scales = mxfp4_parts(blocks)
    return decode_mxfp4(packed[:, None], scales[:, None], torch.float32)


_FORMATS: tuple[tuple[str, int, int, Callable[[Tensor], Tensor], tuple[int, int] | None], ...] = (
    ("Q4_0", 32, 18, decode_q4_0, (0, 2)),
    ("Q4_1", 32, 20, decode_q4_1, (0, 4)),
    ("Q5_0", 32, 22, decode_q5_0, (0, 2)),
    ("Q5_1", 32, 24, decode_q5_1, (0, 4)),
    ("Q8_0", 32, 34, decode_q8_0, (0, 2)),
    ("Q4_K", 256, 144, decode_q4_k, (0, 4)),
    ("Q5_K", 256, 176, decode_q5_k, (0, 4)),
    ("Q6_K", 256, 210, decode_q6_k, (208, 210)),
    ("MXFP4", 32, 17, decode_mxfp4_blocks, None),
)
BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    name: BlockFormat(name=name, num_values=values, num_bytes=size, decode=decode, halves=halves)
    for name, values, size, decode, halves in _FORMATS
}
"""Name → format. Rows that are no multiple of 256, such as GPT-OSS' of 2880, cannot be K-quants:
llama.cpp writes Q5_0, Q5_1 or Q8_0 there, so a file called Q4_K holds those, too."""
