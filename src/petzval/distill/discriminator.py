"""A discriminator that sees with the teacher's eyes: small heads on its frozen hidden states.

Departures from the Lens paper, which does not describe its heads, numbered:
  1. A head is a norm, a layer, SiLU and a score for each token, averaged over the picture: the same
     for any size. The logit is the sum over the heads.
  2. Prompt and noise level reach a head through the teacher's hidden states only, in which both
     already are.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petzval.config import check_ranges, setting
from petzval.distill.conditions import Conditions, Features
from petzval.errors import ConfigError
from petzval.models.mmdit import MMDiT


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsConfig:
    """Settings of the discriminator.

    Attributes:
        blocks: indices of the teacher's blocks whose image stream is looked at.
        hidden: width of a head.
        learning_rate: peak, of the heads alone.
    """

    blocks: tuple[int, ...] = setting(minimum=0, maximum=1023)
    hidden: int = setting(256, minimum=1, maximum=65_536)
    learning_rate: float = setting(1e-4, minimum=0, maximum=1)

    def __post_init__(self) -> None:
        check_ranges(self, where="discriminator")
        if not self.blocks:
            raise ConfigError("a discriminator needs at least one of the teacher's blocks")


class Head(nn.Module):
    """Hidden states [B, S, width] → logits [B]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, states: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.project(self.norm(states.float())))
        return self.score(hidden).float().mean(dim=(1, 2))


class Discriminator(nn.Module):
    """D(x_s, s, c) = sum over the blocks of h_l(T_l(x_s, s, c)).

    Args:
        width: of the hidden states.
        num_heads: as many as there are hidden states.
        hidden: width inside a head.
    """

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(width, hidden) for _ in range(num_heads)])

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Logits [B]; above 0 means real."""
        logits = [head(each) for head, each in zip(self.heads, states, strict=True)]
        return torch.stack(logits).sum(0)


def denoiser_features(model: MMDiT, blocks: Sequence[int]) -> Features:
    """Image streams behind these blocks, in the order of the network.

    Raises:
        ConfigError: the denoiser has fewer blocks.
    """
    num_blocks = len(model.transformer_blocks)
    if max(blocks) >= num_blocks:
        raise ConfigError(
            f"the discriminator looks at block {max(blocks)}, the teacher has {num_blocks}",
            f"name blocks from 0 to {num_blocks - 1}",
        )

    def features(tokens: Tensor, sigmas: Tensor, conditions: Conditions) -> list[Tensor]:
        with _captured([model.transformer_blocks[index] for index in sorted(blocks)]) as states:
            model.velocity(tokens, conditions.features, sigmas, conditions.grid, conditions.mask)
        return states

    return features


@contextmanager
def _captured(blocks: Sequence[nn.Module]) -> Generator[list[Tensor]]:
    """What the blocks give inside the context, first results only, in the order of the calls."""
    states: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        states.append(output[0])

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
