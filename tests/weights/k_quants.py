"""K-quants written by hand, for the tests alone: the format's Python library reads them only.

A plain rounding, without llama.cpp's search for better scales; what a file may hold is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Values = np.ndarray
"""float32 [blocks, 256]."""


def _half(values: np.ndarray) -> np.ndarray:
    """float16 as two bytes [blocks, 2], and nothing that it rounds to zero."""
    return np.maximum(values, 1e-7).astype(np.float16)[:, None].view(np.uint8)


def _as_float(two_bytes: np.ndarray) -> np.ndarray:
    return two_bytes.view(np.float16).astype(np.float32)


def _sub_blocks(values: Values, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Header of 16 bytes and codes [blocks, 8, 32]: value = scale * code - minimum."""
    grouped = values.reshape(-1, 8, 32)
    least = np.minimum(grouped.min(-1), 0)
    scales, minima = (grouped.max(-1) - least) / most, -least
    header = [_half(scales.max(-1) / 63), _half(minima.max(-1) / 63)]
    one, other = (_as_float(part) for part in header)
    scales, minima = (
        np.clip(np.rint(given / unit), 0, 63).astype(np.uint8)
        for given, unit in ((scales, one), (minima, other))
    )
    below = np.maximum(one * scales, 1e-12)[..., None]
    codes = np.clip(np.rint((grouped + (other * minima)[..., None]) / below), 0, most)
    packed = (
        (scales[:, :4] | (scales[:, 4:] >> 4 << 6)),
        (minima[:, :4] | (minima[:, 4:] >> 4 << 6)),
        ((scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4),
    )
    return np.concatenate((*header, *packed), axis=1), codes.astype(np.uint8)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Two sub-blocks a run of 32 bytes, the first below."""
    low = codes & 15
    return (low[:, 0::2] | low[:, 1::2] << 4).reshape(len(codes), 128)


def q4_k(values: Values) -> np.ndarray:
    header, codes = _sub_blocks(values, 15)
    return np.concatenate((header, _nibbles(codes)), axis=1)


def q5_k(values: Values) -> np.ndarray:
    header, codes = _sub_blocks(values, 31)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    fifth = np.bitwise_or.reduce((codes >> 4) << shifts, axis=1)
    return np.concatenate((header, fifth, _nibbles(codes)), axis=1)


def q6_k(values: Values) -> np.ndarray:
    grouped = values.reshape(-1, 16, 16)
    wanted = np.abs(grouped).max(-1) / 31
    unit = _half(wanted.max(-1) / 127)
    scales = np.clip(np.rint(wanted / _as_float(unit)), 1, 127).astype(np.int8)
    steps = (_as_float(unit) * scales)[..., None]
    codes = (np.clip(np.rint(grouped / steps), -32, 31) + 32).astype(np.uint8)
    quarters = codes.reshape(-1, 2, 4, 32)
    low = (quarters[:, :, :2] & 15) | (quarters[:, :, 2:] & 15) << 4
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = np.bitwise_or.reduce((quarters >> 4) << shifts, axis=2)
    parts = (low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), unit)
    return np.concatenate(parts, axis=1)


ENCODERS: Mapping[str, Callable[[Values], np.ndarray]] = {"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}


def encoded(matrix: np.ndarray, kind: str) -> np.ndarray:
    """float32 [rows, columns] → uint8 [rows, bytes of a row]; columns a multiple of 256."""
    return ENCODERS[kind](matrix.reshape(-1, 256).astype(np.float32)).reshape(len(matrix), -1)
