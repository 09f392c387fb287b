"""Small pictures of what is being made, without the work waiting for them.

The one who draws *offers* each step's estimate and goes on at once. A thread of its own projects
the newest one of each picture to colours and encodes it; what it had no time for is left out. On an
accelerator only that thread waits for the numbers to come back.
"""

from __future__ import annotations

import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from petzval.inference.event import Pixels
from petzval.inference.numerics import to_pixels
from petzval.inference.projection import LatentProjection, projection_for
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


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    tokens: Callable[[], Tensor]
    grid: tuple[int, int]


@dataclass(slots=True, eq=False)
class _Shelf:
    """What waits to be drawn, the newest of each key."""

    offers: OrderedDict[Hashable, _Offer] = field(default_factory=OrderedDict[Hashable, _Offer])
    closed: bool = False


class PreviewStream:
    """Previews of whatever is offered, delivered by a thread of its own.

    Args:
        autoencoder: whose latents are offered. Its projection is found or fitted by the thread, so
            the first pictures of a new checkpoint may be finished before there is a preview.
        deliver: called on the thread with the key, the row of the batch and a PNG's bytes.
    """

    def __init__(
        self, autoencoder: Autoencoder, deliver: Callable[[Hashable, int, bytes], object]
    ) -> None:
        self._autoencoder = autoencoder
        self._deliver = deliver
        self._shelf = _Shelf()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="previews", daemon=True)
        self._thread.start()

    def offer(
        self, key: Hashable, tokens: Callable[[], LatentTokens], grid: tuple[int, int]
    ) -> None:
        """Put what a step thinks on the shelf, in place of what the key had there before.

        Args:
            key: of the picture, or the batch.
            tokens: gives normalised tokens, as `StepEvent.estimate` does.
            grid: (height, width) in tokens.
        """
        with self._changed:
            if not self._shelf.closed:
                self._shelf.offers[key] = _Offer(tokens, grid)
                self._changed.notify()

    def forget(self, key: Hashable) -> None:
        """Take an offer back: the picture is finished or was cancelled."""
        with self._changed:
            self._shelf.offers.pop(key, None)

    def close(self) -> None:
        """End the thread, with what it is at; offers afterwards are not heard."""
        with self._changed:
            self._shelf.closed = True
            self._shelf.offers.clear()
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        projection: LatentProjection | None = None
        while (taken := self._take()) is not None:
            key, offer = taken
            try:
                if projection is None:
                    projection = projection_for(self._autoencoder)
                pictures = preview_pixels(projection, offer.tokens(), offer.grid)
                for row, pixels in enumerate(pictures):
                    buffer = io.BytesIO()
                    Image.fromarray(pixels).save(buffer, "PNG")
                    self._deliver(key, row, buffer.getvalue())
            except Exception:  # a preview is a courtesy: the picture goes on without
                logger.exception("a preview could not be made")

    def _take(self) -> tuple[Hashable, _Offer] | None:
        """The offer that waited longest; None once closed."""
        with self._changed:
            while not self._shelf.offers and not self._shelf.closed:
                self._changed.wait()
            return None if self._shelf.closed else self._shelf.offers.popitem(last=False)
