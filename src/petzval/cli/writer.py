"""Write pictures in a thread of its own, while the next ones are drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from petzval.inference.request import GeneratedImage

_AHEAD = 2
"""Pictures that wait to be written; with more of them drawing waits."""


class PictureWriter:
    """Writes one picture after the other; a context that ends when all are written.

    Packing a large picture as a PNG takes as long as a fast card takes to draw the next one.

    Args:
        write: one picture, in the writer's thread; returns where it is.
        written: hears of each, in order and in the caller's thread.

    Raises:
        RequestError: from any call, or at the end: whatever `write` raised. Pictures before that
            one are written, those after it may be.
    """

    def __init__(
        self,
        write: Callable[[GeneratedImage], Path | None],
        written: Callable[[GeneratedImage, Path | None], object],
    ) -> None:
        self._write = write
        self._written = written
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="petzval-write")
        self._waiting: deque[tuple[GeneratedImage, Future[Path | None]]] = deque()

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what is being written, also where drawing ended by an error or by Ctrl-C."""
        try:
            while self._waiting:
                try:
                    self._tell()
                except Exception:
                    if error is None:
                        raise  # else the first error is the one to hear of
        finally:
            self._pool.shutdown()

    def put(self, image: GeneratedImage) -> None:
        """Write a picture soon; waits where too many do."""
        self._waiting.append((image, self._pool.submit(self._write, image)))
        while len(self._waiting) > _AHEAD:
            self._tell()

    def look(self) -> None:
        """Tell of the pictures that have been written by now."""
        while self._waiting and self._waiting[0][1].done():
            self._tell()

    def _tell(self) -> None:
        image, future = self._waiting.popleft()
        self._written(image, future.result())
