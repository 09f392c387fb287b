"""The orthogonal matrices that weights are rotated by before they are rounded.

A rotation spreads what is large in one column over its group; undone, it leaves smaller errors.
Both matrices here are symmetric and their own inverse: rotating twice gives back what was.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_SEEDS = {
    2: ((1, 1), (1, -1)),
    4: ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1)),
}


LARGEST_ROTATION = 4096
"""Columns; the matrix takes 64 MiB. Formats take 256 where nobody asks for more."""


def is_power_of(base: int, number: int) -> bool:
    """Whether a positive number is base, base², base³ …"""
    while number > base and number % base == 0:
        number //= base
    return number == base


def hadamard(size: int, seed: int, device: torch.device | str = "cpu") -> Float[Tensor, "n n"]:
    """A normalised Hadamard matrix: the seed's Kronecker power.

    Args:
        size: a power of the seed.
        seed: 2 for Sylvester's matrix; 4 for the regular one, whose rows all have one sum.
        device: where it is wanted.

    Raises:
        ValueError: the size is no power of the seed.
    """
    if not is_power_of(seed, size):
        raise ValueError(f"a Hadamard matrix of {size} is no power of one of {seed}")
    first = torch.tensor(_SEEDS[seed], dtype=torch.float32, device=device)
    matrix = first
    while len(matrix) < size:
        matrix = torch.kron(matrix, first)
    return matrix / size**0.5


def rotate(
    values: Float[Tensor, "rows columns"], matrix: Float[Tensor, "n n"]
) -> Float[Tensor, "rows columns"]:
    """Every group of n columns times the matrix."""
    rows, columns = values.shape
    grouped = values.reshape(rows, columns // len(matrix), len(matrix))
    return (grouped @ matrix).reshape(rows, columns)
