"""One network of a pipeline and its numbers, which come for its part of a picture and go again."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TypeAlias

from torch import nn

from petzval.models.mmdit import Visit
from petzval.weights.residence import StreamedWeights, WeightReader, fill, vacate

Layers: TypeAlias = Sequence[tuple[str, nn.Module]]
"""(name with a dot at the end, layer), in the order of their calls."""


class Stage:
    """One network and its numbers.

    Args:
        network: without numbers.
        reader: of its component.
        streamed: layers that are there only while they run.
        kept: places of those among them that stay once they were there.
        folded: layers that are there only while a schedule is evaluated.
        cyclic: after the last streamed layer comes the first again.

    Attributes:
        visit: has a streamed layer's numbers there for several calls; None where none is streamed.
    """

    def __init__(
        self,
        network: nn.Module,
        reader: WeightReader,
        *,
        streamed: Layers = (),
        kept: Collection[int] = (),
        folded: Layers = (),
        cyclic: bool = False,
    ) -> None:
        self.network = network
        self.there = False
        self._lock = threading.Lock()  # two threads may ask for the same network
        self._reader = reader
        self._without: Collection[nn.Module] = [layer for _, layer in (*streamed, *folded)]
        self._folded = [layer for _, layer in folded]
        self._kept: Layers = [streamed[index] for index in kept]
        self._kept_are_there = False
        self._streams: list[StreamedWeights] = []
        self.visit: Visit | None = None
        if streamed:
            stream = StreamedWeights(
                streamed, reader, without=self._folded, kept=kept, cyclic=cyclic
            )
            self.visit = stream.visit
            self._streams.append(stream)
        if folded:
            self._streams.append(StreamedWeights(folded, reader))

    def bring(self) -> None:
        """Fill in the numbers that are to be there: all of them, or none where that fails."""
        with self._lock:
            if self.there:
                return
            try:
                fill(self.network, self._reader, without=self._without)
                for name, layer in () if self._kept_are_there else self._kept:
                    fill(layer, self._reader, name, self._folded)
            except BaseException:
                self._kept_are_there = False
                vacate(self.network)
                raise
            self.there = self._kept_are_there = True

    def leave(self) -> None:
        """Make room for another network: put out the numbers that do not stay."""
        for stream in self._streams:
            stream.release()
        vacate(self.network, [layer for _, layer in self._kept])
        self.there = False

    def release(self) -> None:
        """Put out all numbers."""
        self.leave()
        vacate(self.network)
        self._kept_are_there = False
