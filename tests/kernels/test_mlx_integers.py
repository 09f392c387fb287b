"""MLX's integers against recorded numbers of MLX itself, and bit fields by hand."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from petzval.kernels.mlx_integers import MLX_BITS, decode_mlx
from tests.support import GOLDENS

FORMATS = GOLDENS.parent / "formats"
RECORDED = load_file(FORMATS / "mlx.safetensors") | {
    key: value
    for key, value in load_file(FORMATS / "mlx_lm.safetensors").items()
    if key.startswith("float32.")
}
CASES = sorted({key.rpartition(".")[0] for key in RECORDED if key.count(".") == 3})


@pytest.mark.parametrize("case", CASES)
def test_decoded_as_the_library_does(case: str) -> None:
    words, scales, biases, decoded = (
        RECORDED[f"{case}.{name}"] for name in ("words", "scales", "biases", "decoded")
    )
    bits = int(case.split(".")[1])
    values = decode_mlx(words, scales, biases, bits, torch.float32)
    # The library fuses multiplication and addition: one rounding of the product less.
    assert torch.allclose(values, decoded, rtol=0, atol=float(2**-23 * decoded.abs().max()))
    half = decode_mlx(words, scales, biases, bits, torch.bfloat16)
    assert torch.equal(half, values.bfloat16())


def test_every_width_was_recorded() -> None:
    assert {int(case.split(".")[1]) for case in CASES} == set(MLX_BITS)
    assert {case.split(".")[0] for case in CASES} == {"float32", "bfloat16"}


@pytest.mark.parametrize("bits", MLX_BITS)
def test_the_first_code_lies_in_the_lowest_bits(bits: int) -> None:
    codes = [i % (1 << bits) for i in range(1, 33)]
    codes[-1] |= 1 << (bits - 1)  # the sign of a signed word is a bit like any other
    stream = sum(code << (bits * i) for i, code in enumerate(codes))
    words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(bits)]
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    packed = torch.tensor([words], dtype=torch.uint32)
    assert decode_mlx(packed, one, zero, bits, torch.float32).tolist() == [codes]
