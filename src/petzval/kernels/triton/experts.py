"""Which tokens go to which tile of which expert, found on the device, and the launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # pyright: ignore[reportMissingModuleSource]
from torch import Tensor

from petzval.kernels.triton import expert_program
from petzval.kernels.triton.source import launch

_COLUMNS = 64
_BYTES = 32
"""64 inputs a turn: two blocks of MXFP4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Slots (token x choice) sorted by expert, and cut into tiles of one expert each.

    Attributes:
        order: int32 [slots], sorted by expert, otherwise as they come.
        starts: int32 [experts + 1], where each expert's slots begin in `order`.
        tile_expert, tile_first: int32 [tiles], expert and first place in `order`; there are as many
            tiles as there can be, and those without work name an expert that is none.
        rows: slots a tile.
    """

    order: Tensor
    starts: Tensor
    tile_expert: Tensor
    tile_first: Tensor
    rows: int


def schedule(chosen: Tensor, num_experts: int) -> Schedule:
    """Of the experts [tokens, choices] that tokens go to; nothing waits for the device."""
    flat = chosen.flatten()
    num_slots = flat.numel()
    usual = triton.next_power_of_2(max(1, num_slots // num_experts))
    rows = min(64, max(16, usual))
    ordered, order = flat.sort(stable=True)
    experts = torch.arange(num_experts + 1, device=flat.device, dtype=flat.dtype)
    starts = torch.searchsorted(ordered, experts)
    tiles = (starts.diff() + rows - 1) // rows
    ends = tiles.cumsum(0)
    numbers = torch.arange(-(-num_slots // rows) + num_experts, device=flat.device)
    tile_expert = torch.searchsorted(ends, numbers, right=True)
    known = tile_expert.clamp(max=num_experts - 1)
    tile_first = starts[known] + (numbers - (ends - tiles)[known]) * rows
    return Schedule(
        order=order.int(),
        starts=starts.int(),
        tile_expert=tile_expert.int(),
        tile_first=tile_first.int(),
        rows=rows,
    )


def expert_products(
    x: Tensor, chosen: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor, plan: Schedule
) -> Tensor:
    """See `kernels.reference.expert_products`; `plan` is that of `chosen`."""
    num_experts, num_columns = bias.shape
    num_choices = chosen.shape[1]
    rows = x.flatten(0, -2)
    planes = rows.unflatten(-1, (-1, 2)).movedim(-1, 0).contiguous()
    out = x.new_empty(*chosen.shape, num_columns)
    grid = (triton.cdiv(num_columns, _COLUMNS), plan.tile_expert.numel())
    launch(
        expert_program.expert_tile,
        grid,
        x,
        planes,
        plan.order,
        plan.starts,
        plan.tile_expert,
        plan.tile_first,
        blocks.contiguous(),
        scales.contiguous(),
        bias.contiguous(),
        out,
        num_columns,
        planes[0].numel(),
        NUM_BYTES=rows.shape[1] // 2,
        NUM_EXPERTS=num_experts,
        SLOTS_PER_ROW=num_choices if x.dim() == 2 else 1,
        COLUMNS=_COLUMNS,
        ROWS=plan.rows,
        BYTES=_BYTES,
        # The interpreter, on a CPU, has no products in bfloat16.
        WIDE=x.dtype == torch.float32 or not x.is_cuda,
    )
    return out
