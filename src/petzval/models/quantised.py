"""The denoiser with its blocks' weights in 8 or 4 bits; the rest as it was.

Kept in full are what the picture hangs on and what is small: modulation, input and output layers,
timestep embedding, norms and biases. Quantised modulation shows as a grid in the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from petzval.kernels import dispatch
from petzval.kernels.quantise import (
    GROUP,
    WeightFormat,
    decode_int4,
    decode_rows,
    encode_float8,
    encode_int4,
    encode_int8,
)
from petzval.models.mmdit import MMDiT

Read: TypeAlias = Callable[[str, torch.dtype | None, torch.device | str | None], Tensor]
"""(a layer's own name of a tensor, type, place) → tensor; None for the usual ones."""

BLOCK_LINEARS = (
    "attn.img_qkv",
    "attn.txt_qkv",
    "attn.to_out.0",
    "attn.to_add_out",
    "img_mlp.w1",
    "img_mlp.w2",
    "img_mlp.w3",
    "txt_mlp.w1",
    "txt_mlp.w2",
    "txt_mlp.w3",
)
"""A block's matrices, modulation left out: two thirds of the denoiser."""


class QuantisedLinear(nn.Module):
    """A linear layer that keeps codes and decodes them for each call.

    Args:
        inputs, outputs: as of `nn.Linear`.
        bias: whether there is one.
        format: int4 falls back to int8 where the inputs do not divide into its groups.
    """

    codes: Tensor
    scale: Tensor
    least: Tensor

    def __init__(self, inputs: int, outputs: int, *, bias: bool, format: WeightFormat) -> None:
        super().__init__()
        self.format: WeightFormat = "int8" if format == "int4" and inputs % GROUP else format
        if self.format == "int4":
            shape = (outputs, inputs // GROUP, 1)
            self.register_buffer("codes", torch.empty(outputs, inputs // 2, dtype=torch.uint8))
            self.register_buffer("scale", torch.empty(shape, dtype=torch.bfloat16))
            self.register_buffer("least", torch.empty(shape, dtype=torch.bfloat16))
        else:
            kind = torch.int8 if self.format == "int8" else torch.float8_e4m3fn
            self.register_buffer("codes", torch.empty(outputs, inputs, dtype=kind))
            self.register_buffer("scale", torch.empty(outputs, 1))
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def prepared(self, read: Read) -> Mapping[str, Tensor]:
        """What is stored, encoded from the published weight."""
        weight = read("weight", None, None)
        if self.format == "int4":
            codes, scale, least = encode_int4(weight)
            stored = {"codes": codes, "scale": scale, "least": least}
        else:
            encode = encode_int8 if self.format == "int8" else encode_float8
            codes, scale = encode(weight)
            stored = {"codes": codes, "scale": scale}
        return stored if self.bias is None else stored | {"bias": read("bias", None, None)}

    def forward(self, x: Tensor) -> Tensor:
        if self.format == "int4":
            weight = decode_int4(self.codes, self.scale, self.least, x.dtype)
        elif self.format == "float8":
            return dispatch.float8_linear(x, self.codes, self.scale, self.bias)
        else:
            weight = decode_rows(self.codes, self.scale, x.dtype)
        return nn.functional.linear(x, weight, self.bias)


def quantised(linear: nn.Linear, format: WeightFormat) -> QuantisedLinear:
    """A layer in place of one that has its weight; the bias is the same tensor."""
    with torch.device("meta"):
        made = QuantisedLinear(
            linear.in_features, linear.out_features, bias=has_bias(linear), format=format
        )
    bias = linear.bias
    stored = made.prepared(lambda name, dtype, place: linear.weight if name == "weight" else bias)
    for name, tensor in stored.items():
        if name != "bias":
            setattr(made, name, tensor)
    made.bias = bias
    return made


def quantise(denoiser: MMDiT, format: WeightFormat) -> None:
    """Replace the blocks' matrices of a denoiser on the meta device; it is to be filled after."""
    replace_block_linears(
        denoiser,
        lambda old: QuantisedLinear(
            old.in_features, old.out_features, bias=has_bias(old), format=format
        ),
    )


def replace_block_linears(denoiser: MMDiT, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put other layers where a denoiser's blocks have matrices, on the meta device."""
    with torch.device("meta"):
        for name, old in list(block_linears(denoiser)):
            denoiser.set_submodule(name, make(old))


def block_linears(denoiser: MMDiT) -> Iterator[tuple[str, nn.Linear]]:
    """Every matrix of a denoiser's blocks, modulation left out, with its name."""
    for index, block in enumerate(denoiser.transformer_blocks):
        for name in BLOCK_LINEARS:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            yield f"transformer_blocks.{index}.{name}", linear


def has_bias(linear: nn.Linear) -> bool:
    """Whether a linear layer has one (torch's own annotation says it always does)."""
    return linear.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
