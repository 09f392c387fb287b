"""What the denoiser's objective draws from: clean latents and captions, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor


@runtime_checkable
class Pool(Protocol):
    """Shards of a cache (`cache.LatentPool`) or a person's folder (`folder_pool.FolderPool`).

    Both answers are pure functions of their arguments.
    """

    def draw_bucket(self, step: int, base: int, rng: np.random.Generator) -> tuple[int, int]:
        """The grid of the window that begins at this step, of this family of sizes."""
        ...

    def draw(
        self, step: int, grid: tuple[int, int], count: int, rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, str]]:
        """Latents [S, C] and one caption each of `count` pictures of a bucket."""
        ...
