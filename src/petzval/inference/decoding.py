"""Latents → pixels: at once or in strips, in the thread that draws or in whichever asks later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from petzval.errors import PlacementError
from petzval.inference import numerics
from petzval.inference.event import Pixels
from petzval.inference.parity import Parity
from petzval.inference.request import GeneratedImage
from petzval.kernels import backends
from petzval.models.latents import unpatchify
from petzval.models.strips import DEFAULT_ROWS, decode_in_strips
from petzval.models.vae import Autoencoder
from petzval.shapes import Images, LatentTokens

Finished: TypeAlias = tuple[GeneratedImage, ...]


@runtime_checkable
class Finish(Protocol):
    """Decodes the pictures of a batch, in strips where they are asked for."""

    def __call__(self, *, strip_rows: int | None = None) -> Finished: ...


@torch.no_grad()
def decode_tokens(
    autoencoder: Autoencoder,
    tokens: LatentTokens,
    grid: tuple[int, int],
    parity: Parity,
    *,
    strip_rows: int = 0,
) -> Images:
    """Denoised tokens → pictures, nominally in [-1, 1], not clamped.

    Args:
        grid: (height, width) in tokens.
        parity: whose statistics.
        strip_rows: of each strip; 0 decodes the picture at once.
    """
    dtype = autoencoder.post_quant_conv.weight.dtype
    tokens = numerics.restore_statistics(tokens, autoencoder.bn, parity, dtype)
    latents = unpatchify(tokens, grid)
    if strip_rows:
        return decode_in_strips(autoencoder, latents, rows=strip_rows)
    return autoencoder.decode(latents)


class LateDecoding:
    """The pictures of a batch, decoded once, by whoever asks first.

    Args:
        finish: decodes them; in strips where memory runs out, for nobody but the thread that draws
            may move the networks.
        device: where.
        lock: held meanwhile.
    """

    def __init__(
        self, finish: Finish, device: torch.device, lock: AbstractContextManager[Any]
    ) -> None:
        self._finish: Finish | None = finish
        self._device = device
        self._lock = lock
        self._images: Finished = ()
        self._error: Exception | None = None

    def __call__(self) -> Finished:
        self.settle()
        if self._error is not None:
            raise self._error
        return self._images

    @property
    def waits(self) -> bool:
        """Whether nobody has asked yet."""
        return self._finish is not None

    def settle(self) -> None:
        """Decode them now, or keep what was raised for whoever asks."""
        with self._lock:
            if self._finish is None:
                return
            try:
                self._images = self._decoded(self._finish)
            except Exception as error:
                self._error = error
            self._finish = None

    def _decoded(self, finish: Finish) -> Finished:
        try:
            return finish()
        except (RuntimeError, MemoryError, OSError) as error:
            if not backends.is_out_of_memory(error):
                raise
        backends.give_back(self._device)
        try:
            return finish(strip_rows=DEFAULT_ROWS)
        except (RuntimeError, MemoryError, OSError) as error:
            if not backends.is_out_of_memory(error):
                raise
        # Out here what its traceback held is gone, however long this one is kept.
        raise PlacementError(
            "memory ran out while a picture was decoded, in strips as well",
            "draw a smaller --size, or free some memory",
        )


class Decodings:
    """Decodings in several threads, and none while the networks move."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: list[LateDecoding] = []
        self._moves = 0

    def late(self, finish: Finish, device: torch.device) -> LateDecoding:
        """For any thread, run once, and before the networks move."""
        self._waiting = [each for each in self._waiting if each.waits]
        self._waiting.append(LateDecoding(finish, device, self._lock))
        return self._waiting[-1]

    def preview(self, decode: Callable[[], Pixels]) -> Callable[[], Pixels]:
        """The same for any thread; refused once the networks have moved."""
        moves = self._moves

        def decoded() -> Pixels:
            with self._lock:
                if self._moves != moves:
                    raise PlacementError(
                        "since this step the networks have moved",
                        "ask for the preview of a later step",
                    )
                try:
                    return decode()
                except (RuntimeError, MemoryError, OSError) as error:
                    if not backends.is_out_of_memory(error):
                        raise
                raise PlacementError(
                    "memory ran out for a preview", "the picture itself goes on without it"
                )

        return decoded

    def settle(self) -> None:
        """Decode what waits, now and here: what comes needs the memory."""
        with self._lock:
            for each in self._waiting:
                each.settle()
            self._waiting.clear()

    @contextmanager
    def moving(self) -> Generator[None]:
        """What waits is decoded first; nothing is until the end of the block."""
        with self._lock:
            self.settle()
            self._moves += 1
            yield
