"""GPT-OSS mixture of experts: bf16 matrices, or 4-bit blocks de-quantised one expert at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from petzval.kernels import dispatch
from petzval.kernels.mxfp4 import decode_mxfp4
from petzval.kernels.nvfp4 import NVFP4_BLOCK, decode_nvfp4
from petzval.kernels.scale_tiles import tiled_shape

SWIGLU_ALPHA = 1.702


def gated_activation(gate_up: Tensor, limit: float) -> Tensor:
    """[…, 2 I] interleaved (gate, up) → (up + 1) gate sigmoid(1.702 gate), both clamped.

    gate is clamped above only; up on both sides (GPT-OSS `swiglu_limit`).
    """
    gate, up = gate_up[..., 0::2].clamp(max=limit), gate_up[..., 1::2].clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(SWIGLU_ALPHA * gate)


class Router(nn.Module):
    """Scores the experts: the k largest logits, softmax over those alone. Keys weight, bias."""

    def __init__(self, width: int, num_experts: int, num_chosen: int) -> None:
        super().__init__()
        self.num_chosen = num_chosen
        self.weight = nn.Parameter(torch.zeros(num_experts, width))
        self.bias = nn.Parameter(torch.zeros(num_experts))

    def logits(self, x: Tensor) -> Tensor:
        """[N, width] → [N, experts]."""
        return nn.functional.linear(x, self.weight, self.bias)

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits → (weights [N, k], expert indices [N, k]), best first."""
        top, chosen = logits.topk(self.num_chosen, dim=-1)
        return top.softmax(dim=-1), chosen


class Experts(nn.Module):
    """What both storages share: send each token to its experts, in increasing expert order."""

    def __init__(self, limit: float, num_experts: int) -> None:
        super().__init__()
        self.limit = limit
        self.num_experts = num_experts

    def matrices(self, expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """gate_up [in, 2 I], its bias, down [I, out], its bias, of one expert."""
        raise AssertionError("an Experts subclass gives the matrices")

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Sum of weighted expert outputs; x [N, width], weights and chosen [N, k]."""
        out = torch.zeros_like(x)
        for expert in range(self.num_experts):
            rows, slots = (chosen == expert).nonzero(as_tuple=True)
            if rows.numel() == 0:
                continue
            gate_up, gate_up_bias, down, down_bias = self.matrices(expert)
            hidden = gated_activation(x[rows] @ gate_up + gate_up_bias, self.limit)
            result = hidden @ down + down_bias
            out = out.index_add(0, rows, (result * weights[rows, slots, None]).to(out.dtype))
        return out


class DenseExperts(Experts):
    """De-quantised matrices as published: gate_up_proj [E, in, 2 I], down_proj [E, I, out]."""

    def __init__(self, width: int, intermediate: int, num_experts: int, limit: float) -> None:
        super().__init__(limit, num_experts)
        self.gate_up_proj = nn.Parameter(torch.zeros(num_experts, width, 2 * intermediate))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(num_experts, 2 * intermediate))
        self.down_proj = nn.Parameter(torch.zeros(num_experts, intermediate, width))
        self.down_proj_bias = nn.Parameter(torch.zeros(num_experts, width))

    def matrices(self, expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            self.gate_up_proj[expert],
            self.gate_up_proj_bias[expert],
            self.down_proj[expert],
            self.down_proj_bias[expert],
        )


class PackedExperts(Experts):
    """MXFP4 blocks and scales kept as they lie in the file; one expert is decoded at a time.

    Keys `*_blocks` uint8 [E, out, in / 32, 16] and `*_scales` uint8 [E, out, in / 32]. Peak memory
    is the file's plus one expert in the arithmetic dtype, never the whole layer.
    """

    gate_up_proj_blocks: Tensor
    gate_up_proj_scales: Tensor
    down_proj_blocks: Tensor
    down_proj_scales: Tensor

    def __init__(self, width: int, intermediate: int, num_experts: int, limit: float) -> None:
        super().__init__(limit, num_experts)
        shapes = {"gate_up_proj": (2 * intermediate, width), "down_proj": (width, intermediate)}
        for name, (rows, columns) in shapes.items():
            blocks = torch.zeros(num_experts, rows, columns // 32, 16, dtype=torch.uint8)
            self.register_buffer(f"{name}_blocks", blocks)
            scales = torch.zeros(num_experts, rows, columns // 32, dtype=torch.uint8)
            self.register_buffer(f"{name}_scales", scales)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(num_experts, 2 * intermediate))
        self.down_proj_bias = nn.Parameter(torch.zeros(num_experts, width))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """As `Experts.forward`; by one kernel for all experts where the device has it."""
        if not dispatch.in_packed_experts(x):
            return super().forward(x, weights, chosen)
        return dispatch.packed_experts(
            x,
            weights,
            chosen,
            (self.gate_up_proj_blocks, self.gate_up_proj_scales, self.gate_up_proj_bias),
            (self.down_proj_blocks, self.down_proj_scales, self.down_proj_bias),
            lambda gate_up: gated_activation(gate_up, self.limit),
        )

    def matrices(self, expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = self.gate_up_proj_bias.dtype
        gate_up = decode_mxfp4(
            self.gate_up_proj_blocks[expert], self.gate_up_proj_scales[expert], dtype
        )
        down = decode_mxfp4(self.down_proj_blocks[expert], self.down_proj_scales[expert], dtype)
        return gate_up.T, self.gate_up_proj_bias[expert], down.T, self.down_proj_bias[expert]


class Nvfp4Experts(Experts):
    """NVFP4 codes, scales in tiles and factors as ComfyUI's file has them; one expert at a time.

    Keys `*_codes` uint8 [E, out, in / 2], `*_tiles` uint8 (the bits of float8_e4m3fn), and
    `*_factors` float32 [E]. Scales are kept as bytes, so that no change of dtype touches them.
    """

    gate_up_proj_codes: Tensor
    gate_up_proj_tiles: Tensor
    gate_up_proj_factors: Tensor
    down_proj_codes: Tensor
    down_proj_tiles: Tensor
    down_proj_factors: Tensor

    def __init__(self, width: int, intermediate: int, num_experts: int, limit: float) -> None:
        super().__init__(limit, num_experts)
        shapes = {"gate_up_proj": (2 * intermediate, width), "down_proj": (width, intermediate)}
        for name, (rows, columns) in shapes.items():
            codes = torch.zeros(num_experts, rows, columns // 2, dtype=torch.uint8)
            self.register_buffer(f"{name}_codes", codes)
            tiles = tiled_shape(rows, columns // NVFP4_BLOCK)
            self.register_buffer(
                f"{name}_tiles", torch.zeros(num_experts, *tiles, dtype=torch.uint8)
            )
            self.register_buffer(f"{name}_factors", torch.zeros(num_experts))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(num_experts, 2 * intermediate))
        self.down_proj_bias = nn.Parameter(torch.zeros(num_experts, width))

    def matrices(self, expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = self.gate_up_proj_bias.dtype
        gate_up, down = (
            decode_nvfp4(
                codes[expert], tiles[expert].view(torch.float8_e4m3fn), factors[expert], dtype
            )
            for codes, tiles, factors in (
                (self.gate_up_proj_codes, self.gate_up_proj_tiles, self.gate_up_proj_factors),
                (self.down_proj_codes, self.down_proj_tiles, self.down_proj_factors),
            )
        )
        return gate_up.T, self.gate_up_proj_bias[expert], down.T, self.down_proj_bias[expert]


_STORAGES: dict[str | None, type[DenseExperts | PackedExperts | Nvfp4Experts]] = {
    None: DenseExperts,
    "mxfp4": PackedExperts,
    "nvfp4": Nvfp4Experts,
}
PACKINGS = tuple(name for name in _STORAGES if name is not None)
"""Formats in which experts can stay while they are used."""


class MixtureOfExperts(nn.Module):
    """Router and experts; keys `router.*`, `experts.*`.

    Args:
        packing: one of `PACKINGS`; None keeps matrices.
    """

    def __init__(
        self,
        *,
        width: int,
        intermediate: int,
        num_experts: int,
        num_chosen: int,
        limit: float,
        packing: str | None,
    ) -> None:
        super().__init__()
        self.router = Router(width, num_experts, num_chosen)
        self.experts = _STORAGES[packing](width, intermediate, num_experts, limit)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] → the same; every token goes to its own experts."""
        flat = x.flatten(0, 1)
        weights, chosen = self.router.choose(self.router.logits(flat))
        return self.experts(flat, weights, chosen).unflatten(0, x.shape[:2])
