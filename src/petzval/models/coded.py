"""Linear layers whose weights stay in the codes of the file they came from.

A quantised file is as small in memory as on the disk then. Each call decodes the layer's own matrix
in float32 and rounds it to the type of the input, which is what loading it decoded does once: the
products are the same, bit for bit. What it costs is the decoding, at every call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from petzval.kernels.matrix_codes import MatrixCodes, decode_matrix


class CodedLinear(nn.Module):
    """A linear layer that keeps codes of any format.

    Args:
        inputs, outputs: as of `nn.Linear`.
        bias: whether there is one.
        pieces: matrices that make up the weight, one below the other; their stored tensors are the
            layer's buffers, see `part_name`.
    """

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, pieces: Sequence[MatrixCodes]
    ) -> None:
        super().__init__()
        if any(piece.shape[1] != inputs for piece in pieces):
            raise ValueError(f"the pieces of a layer with {inputs} inputs have other widths")
        if sum(piece.shape[0] for piece in pieces) != outputs:
            raise ValueError(f"the pieces of a layer with {outputs} outputs have other heights")
        self.in_features, self.out_features = inputs, outputs
        self.pieces = tuple(pieces)
        for index, piece in enumerate(self.pieces):
            for name, shape, dtype in piece.parts:
                self.register_buffer(part_name(name, index), torch.empty(shape, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The weight [outputs, inputs]."""
        rows = [
            decode_matrix(
                piece, [self.get_buffer(part_name(name, index)) for name, *_ in piece.parts]
            ).to(dtype)
            for index, piece in enumerate(self.pieces)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.decoded(x.dtype), self.bias)


def part_name(name: str, index: int) -> str:
    """The buffer that holds a stored tensor of the piece of that number."""
    return f"{name}_{index}"


def num_coded_values(module: nn.Module) -> int:
    """Values that one pass through a network decodes."""
    layers = [each for each in module.modules() if isinstance(each, CodedLinear)]
    return sum(piece.num_values for layer in layers for piece in layer.pieces)
