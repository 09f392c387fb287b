"""Block formats of GGUF files against the library that defines them, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from petzval.kernels.ggml import BLOCK_FORMATS, decode_blocks, mxfp4_parts
from petzval.kernels.mxfp4 import decode_mxfp4

FLOAT16_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "MXFP4": (),
}  # fmt: skip
"""Bytes of a block at which a float16 begins; random ones would be NaN now and then."""


def random_blocks(name: str, rows: int = 3, blocks: int = 5) -> np.ndarray:
    """uint8 [rows, bytes of a row]: every code, sane scales."""
    generator = np.random.default_rng(7)
    size = BLOCK_FORMATS[name].num_bytes
    raw = generator.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for start in FLOAT16_AT[name]:
        scales = generator.standard_normal((rows, blocks, 1)).astype(np.float16)
        raw[..., start : start + 2] = scales.view(np.uint8)
    if name == "MXFP4":
        raw[..., 0] = generator.integers(0, 250, (rows, blocks))
        raw[0, 0, 0] = 0  # 2^-127, which float32 holds without its full precision
    return raw.reshape(rows, blocks * size)


@pytest.mark.parametrize("name", sorted(BLOCK_FORMATS))
def test_the_values_are_the_librarys(name: str) -> None:
    raw = random_blocks(name)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    decoded = decode_blocks(torch.from_numpy(raw), BLOCK_FORMATS[name])
    assert decoded.shape == (3, 5 * BLOCK_FORMATS[name].num_values)
    assert torch.equal(decoded, torch.from_numpy(expected))


@pytest.mark.parametrize("name", sorted(BLOCK_FORMATS))
def test_the_sizes_are_the_librarys(name: str) -> None:
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (BLOCK_FORMATS[name].num_values, BLOCK_FORMATS[name].num_bytes) == sizes


def test_mxfp4_blocks_become_the_published_ones_without_loss() -> None:
    raw = torch.from_numpy(random_blocks("MXFP4"))
    blocks, scales = mxfp4_parts(raw.unflatten(-1, (-1, 17)))
    assert (blocks.shape, scales.shape) == ((3, 5, 16), (3, 5))
    expected = decode_blocks(raw, BLOCK_FORMATS["MXFP4"])
    assert torch.equal(decode_mxfp4(blocks, scales, torch.float32), expected)
