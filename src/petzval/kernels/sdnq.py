"""SD.Next's quantised matrices (SDNQ): integers of 2 to 8 bits or 8-bit floats, with scales.

Widths that are no whole byte are packed in runs, a few codes in as many bytes as they need: most
codes lie whole in the low bits of a byte, and what room is left above them holds the others, piece
by piece. A group of neighbours in a row has one scale, and for unsigned codes one offset.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_Pieces = tuple[tuple[int, int, int, int], ...]
"""(byte of the run, first bit there, number of bits, first bit in the code) of each piece."""


def _whole(count: int, bits: int, start: int = 0) -> tuple[_Pieces, ...]:
    """Codes that lie in one byte each, in bytes that follow each other."""
    return tuple(((byte, start, bits, 0),) for byte in range(count))


_RUNS: Mapping[int, tuple[int, tuple[_Pieces, ...]]] = {
    2: (1, tuple(((0, 2 * i, 2, 0),) for i in range(4))),
    3: (
        3,
        (
            *_whole(3, 3),
            *_whole(3, 3, start=3),
            ((0, 6, 2, 0), (2, 6, 1, 2)),
            ((1, 6, 2, 0), (2, 7, 1, 2)),
        ),
    ),
    4: (1, (((0, 0, 4, 0),), ((0, 4, 4, 0),))),
    5: (
        5,
        (
            *_whole(5, 5),
            ((0, 5, 3, 0), (3, 5, 2, 3)),
            ((1, 5, 3, 0), (4, 5, 2, 3)),
            ((2, 5, 3, 0), (3, 7, 1, 4), (4, 7, 1, 3)),
        ),
    ),
    6: (3, (*_whole(3, 6), ((0, 6, 2, 4), (1, 6, 2, 2), (2, 6, 2, 0)))),
    7: (7, (*_whole(7, 7), tuple((byte, 7, 1, 6 - byte) for byte in range(7)))),
}
"""Width of a code → bytes of a run, and where each code's bits lie in it."""

SDNQ_INTEGERS: Mapping[str, tuple[int, bool]] = {
    f"{sign}int{bits}": (bits, sign == "") for bits in range(2, 9) for sign in ("", "u")
}
"""Name of an integer type → (bits, whether it has a sign)."""

SDNQ_FLOATS: Mapping[str, torch.dtype] = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
"""Name of a floating-point type → the type that it is stored in."""


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """Bytes → codes of `bits` bits as uint8, in one row.

    Args:
        packed: any shape; whole runs.
        bits: 2 to 7.
    """
    run, places = _RUNS[bits]
    bytes_of = packed.reshape(-1, run)
    codes = []
    for pieces in places:
        code = torch.zeros_like(bytes_of[:, 0])
        for byte, start, count, place in pieces:
            code |= ((bytes_of[:, byte] >> start) & ((1 << count) - 1)) << place
        codes.append(code)
    return torch.stack(codes, dim=-1).flatten()


def num_values(number: str, shape: tuple[int, ...]) -> int | None:
    """How many values a stored tensor of that shape holds; None where its runs are not whole."""
    num_bytes = 1
    for length in shape:
        num_bytes *= length
    bits = SDNQ_INTEGERS.get(number, (8, True))[0]
    if bits == 8:
        return num_bytes
    run, places = _RUNS[bits]
    runs, rest = divmod(num_bytes, run)
    return None if rest else runs * len(places)


def decode_sdnq(
    number: str, codes: Tensor, scale: Tensor, zero_point: Tensor | None, columns: int
) -> Tensor:
    """values = codes * scale + zero point, in the type of the scale → [rows, columns] of that type.

    Args:
        number: a name of `SDNQ_INTEGERS` or `SDNQ_FLOATS`.
        codes: as stored.
        scale: [rows, 1], [rows, groups, 1], or one for all.
        zero_point: like the scale; for unsigned integers.
        columns: of the matrix.
    """
    bits, signed = SDNQ_INTEGERS.get(number, (8, True))
    if bits < 8:
        codes = unpack_codes(codes, bits)
    values = codes.to(scale.dtype)
    if bits < 8 and signed:
        values = values - (1 << (bits - 1))
    grouped = values.reshape(*scale.shape[:-1], -1) if scale.numel() > 1 else values
    if zero_point is None:
        return (grouped * scale).reshape(-1, columns)
    # One operation, which may round once where two round twice.
    return torch.addcmul(zero_point, grouped, scale).reshape(-1, columns)
