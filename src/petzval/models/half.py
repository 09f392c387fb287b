"""The denoiser in float16 on devices without bfloat16: scaled products, everything else float32.

The published model's values do not fit float16: |V| reaches 140,000 and the streams 3 x 10^7, where
float16 ends at 65,504. What is heavy are the products, and those can be scaled exactly:

- a linear layer divides each token by the power of two that brings its largest value below 2^10,
  each row of its weight by the one that brings the sum of its magnitudes below 2^5, and multiplies
  the result by both. No result can then exceed 2^15. Bias, norms, gates and both streams are
  float32.
- attention scales V in the same way for the whole head; the scores come from normalised q and k.

Multiplying by a power of two loses nothing, so that what remains is float16's own rounding of
weights and operands.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from petzval.kernels.fast import power_of_two_above
from petzval.models.attention import JointAttention
from petzval.models.mmdit import MMDiT
from petzval.models.quantised import Read, has_bias, replace_block_linears

LARGEST_TOKEN, LARGEST_ROW = 2.0**10, 2.0**5
"""What tokens and rows are scaled below: no result exceeds their product, half of what float16
holds. Tokens get the larger share of the exponents: where one channel is a million times the
others, as the streams have it, these must not sink below what float16 can tell from zero."""


class ScaledLinear(nn.Module):
    """float32 in, a float16 product of scaled tokens, float32 out."""

    weight: Tensor
    row_scale: Tensor
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=torch.float16))
        self.register_buffer("row_scale", torch.empty(outputs))
        self.register_buffer("bias", torch.empty(outputs) if bias else None)

    def prepared(self, read: Read) -> Mapping[str, Tensor]:
        """The scaled weight in float16, scales and bias in float32."""
        weight = read("weight", torch.float32, None)
        row_scale = power_of_two_above(weight.abs().sum(dim=1)) / LARGEST_ROW
        stored = {"weight": (weight / row_scale[:, None]).half(), "row_scale": row_scale}
        return stored if self.bias is None else stored | {"bias": read("bias", torch.float32, None)}

    def forward(self, x: Tensor) -> Tensor:
        scale = power_of_two_above(x.abs().amax(dim=-1, keepdim=True)) / LARGEST_TOKEN
        product = nn.functional.linear((x / scale).half(), self.weight).float() * scale
        product = product * self.row_scale
        return product if self.bias is None else product + self.bias


def use_scaled_float16(denoiser: MMDiT) -> None:
    """Replace the blocks' matrices of a denoiser on the meta device; it is to be filled after.

    All its other weights are to be float32.
    """
    replace_block_linears(
        denoiser, lambda old: ScaledLinear(old.in_features, old.out_features, bias=has_bias(old))
    )
    for block in denoiser.transformer_blocks:
        attention = block.get_submodule("attn")
        assert isinstance(attention, JointAttention)
        attention.scaled_float16 = True
