"""What the pipeline tells between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

from petzval.inference.request import GeneratedImage

Pixels: TypeAlias = UInt8[np.ndarray, "batch height width 3"]
"""8-bit RGB pictures."""

PicturePixels: TypeAlias = UInt8[np.ndarray, "height width 3"]
"""One of them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepEvent:
    """One solver step of one picture, or of a batch of them.

    Attributes:
        indices: which pictures of the request.
        step, num_steps: 1 … num_steps.
        sigma: noise level after the step; 0 after the last one.
        images: the finished pictures, with the last step only.
        preview: call it for the pictures as they look from here (a decode: not free).
        any_thread: whether `preview` may be called from any thread; else only from the one that
            draws, before the next step, for it moves networks.
        small_preview: call it for small, rough ones, nearly free; None where there are none.
        finish: where decoding was left to the consumer, with the last step only: call it for the
            finished pictures, from any thread; `images` is empty then.
    """

    indices: tuple[int, ...]
    step: int
    num_steps: int
    sigma: float
    images: tuple[GeneratedImage, ...]
    preview: Callable[[], Pixels]
    any_thread: bool = True
    small_preview: Callable[[], Pixels] | None = None
    finish: Callable[[], tuple[GeneratedImage, ...]] | None = None


class StageClock:
    """Seconds per stage of one batch; what the consumer does between two steps is not counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def resume(self) -> None:
        """Count from now: the time since the last lap was the consumer's."""
        self._last = time.perf_counter()
