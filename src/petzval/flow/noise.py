"""Initial noise: one generator per picture, layout and dtype named.

A seed belongs to a picture, not to a batch: it gives the same noise in any batch, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from petzval.shapes import LatentTokens

NoiseMode = Literal["default", "microsoft", "comfyui"]


def initial_noise(
    seeds: Sequence[int],
    grid: tuple[int, int],
    channels: int,
    *,
    mode: NoiseMode = "default",
    dtype: torch.dtype = torch.float32,
) -> LatentTokens:
    """Noise [len(seeds), h w, channels], float32 on the CPU.

    Args:
        seeds: one a picture. In `microsoft` mode the first seeds one generator for the whole
            batch, as the original does with a single seed.
        grid: (height, width) in tokens.
        channels: channels of a token.
        mode: `default` draws float32 tokens, row-major, per picture; `microsoft` draws tokens in
            `dtype` (the network's), batch at once; `comfyui` draws a float32 channel-first grid.
        dtype: only for `microsoft`.
    """
    height, width = grid
    if mode == "microsoft":
        generator = torch.Generator("cpu").manual_seed(seeds[0])
        shape = (len(seeds), height * width, channels)
        return torch.randn(shape, generator=generator, dtype=dtype).float()
    return torch.cat([_one(seed, height, width, channels, mode) for seed in seeds])


def _one(seed: int, height: int, width: int, channels: int, mode: NoiseMode) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    if mode == "comfyui":
        grid = torch.randn((1, channels, height, width), generator=generator)
        return grid.flatten(2).transpose(1, 2)
    return torch.randn((1, height * width, channels), generator=generator)


class SharedNoise:
    """The rows of `microsoft` mode's one draw for a batch, each drawn when it is asked for.

    The generator goes on from row to row, so that memory is that of one row, and a batch that is
    asked for in order is drawn once. Row k is the same as in `initial_noise` where a row's numbers
    are a multiple of 16, as those of every published size are: torch fills noise by sixteens.
    """

    def __init__(self, seed: int, grid: tuple[int, int], channels: int, dtype: torch.dtype) -> None:
        self._seed = seed
        self._shape = (1, grid[0] * grid[1], channels)
        self._dtype = dtype
        self._begin()

    def row(self, index: int) -> LatentTokens:
        """Row `index` [1, h w, channels], float32 on the CPU; going back draws from the start."""
        if index < self._next:
            self._begin()
        while True:
            drawn = torch.randn(self._shape, generator=self._generator, dtype=self._dtype)
            self._next += 1
            if self._next > index:
                return drawn.float()

    def _begin(self) -> None:
        self._generator = torch.Generator("cpu").manual_seed(self._seed)
        self._next = 0
