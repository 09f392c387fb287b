"""Small pictures of what is being made, at next to no cost and without the work waiting for them.

A step hands out a function, and whoever calls it, in whatever thread, pays for the preview: a
projection (`projection`) of the step's estimate in place of a decoding. Where a checkpoint's
projection has yet to be fitted, a thread does that, and there are no previews until it is done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F

from petzval.inference.event import Pixels
from petzval.inference.numerics import to_pixels
from petzval.inference.projection import LatentProjection, find_projection, make_projection
from petzval.kernels import backends
from petzval.models.vae import Autoencoder
from petzval.shapes import LatentTokens

LONGEST_SIDE = 256
"""Of a preview in pixels; larger ones are halved until they fit."""

logger = logging.getLogger(__name__)


@torch.no_grad()
def preview_pixels(
    projection: LatentProjection, tokens: LatentTokens, grid: tuple[int, int]
) -> Pixels:
    """Small 8-bit pictures of normalised tokens, no side above `LONGEST_SIDE`."""
    small = projection(tokens, grid)
    while max(small.shape[-2:]) > LONGEST_SIDE:
        small = F.avg_pool2d(small, 2, ceil_mode=True)
    return to_pixels(small)


class SmallPreviews:
    """The previews of one autoencoder's latents; none before `begin`, and none while it fits.

    Nothing of the autoencoder is kept but its statistics, so that its weights may go.

    Args:
        autoencoder: gives it, its weights in place: its statistics name the projection, its decoder
            is what a new one is fitted to.
        stays: whether it stays in place; where it may go, a new projection is fitted at once.
    """

    def __init__(
        self, autoencoder: Callable[[], Autoencoder], stays: Callable[[], bool] = lambda: True
    ) -> None:
        self._autoencoder = autoencoder
        self._stays = stays
        self._projection: LatentProjection | None = None
        self._fitting: threading.Thread | None = None

    def begin(self) -> None:
        """Find the projection; where there is none yet, a thread fits it."""
        if self._projection is not None or self._fitting is not None:
            return
        try:
            autoencoder = self._autoencoder()
        except (RuntimeError, MemoryError, OSError) as error:
            if not backends.is_out_of_memory(error):
                raise
            logger.warning("no previews: memory ran out for the autoencoder")
            return
        self._projection = find_projection(autoencoder)
        if self._projection is not None:
            return
        if not self._stays():
            self._fit(autoencoder)
            return
        self._fitting = threading.Thread(target=self._fit, args=(autoencoder,), name="petzval-fit")
        self._fitting.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether there are previews, after at most so many seconds."""
        if self._fitting is not None:
            self._fitting.join(seconds)
        return self._projection is not None

    def of(
        self, estimate: Callable[[], LatentTokens], grid: tuple[int, int]
    ) -> Callable[[], Pixels] | None:
        """The preview of an estimate, made when it is called; None where there are none.

        Args:
            estimate: gives the normalised tokens.
            grid: (height, width) in tokens.
        """
        projection = self._projection
        if projection is None:
            return None
        return lambda: preview_pixels(projection, estimate(), grid)

    def _fit(self, autoencoder: Autoencoder) -> None:
        try:
            self._projection = make_projection(autoencoder)
        except Exception:  # a preview is a courtesy: pictures are made without
            logger.exception("no previews: the projection could not be fitted")
