"""The next batch's frozen networks at work while this batch trains.

On a GPU the encoder and the autoencoder of batch n + 1 are queued on a stream of their own before
the forward of batch n is queued on the main one, and the device runs both. One Python thread does
all of it: what overlaps is the device's work, not the interpreter's. On the CPU there is nothing to
overlap, and a batch is prepared when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, cast

import torch
from torch import Tensor

from petzval.kernels import backends
from petzval.training.objective import BatchT


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ahead(Generic[BatchT]):
    """A prepared batch, or why there is none; the CUDA event `ready` follows the device's work."""

    batch: BatchT | None = None
    error: Exception | None = None
    ready: Any = None


class Prefetcher(Generic[BatchT]):
    """Batches in order, each prepared once.

    An error in making or preparing a batch is raised when that batch is asked for, not before: the
    step in hand is finished and can be saved.

    Args:
        makers: functions that make the batches, in order.
        prepare: frozen work on a batch; None passes batches through.
        device: where the work runs.
    """

    def __init__(
        self,
        makers: Iterable[Callable[[], BatchT]],
        prepare: Callable[[BatchT], BatchT] | None,
        device: torch.device,
    ) -> None:
        self._makers: Iterator[Callable[[], BatchT]] = iter(makers)
        self._prepare = prepare
        ahead = device.type == "cuda" and prepare is not None
        self._stream = backends.side_stream(device) if ahead else None
        self._next: _Ahead[BatchT] | None = None

    def __iter__(self) -> Iterator[BatchT]:
        return self

    def __next__(self) -> BatchT:
        current = self._next or self._produce()
        if current is None:
            raise StopIteration
        self._next = None
        if current.error is not None:
            raise current.error
        if current.ready is not None:
            stream = backends.current_stream()
            stream.wait_event(current.ready)
            for tensor in tensors_in(current.batch):
                # The side stream's allocator must not reuse it while the main stream reads it.
                if tensor.is_cuda:
                    tensor.record_stream(stream)
        if self._stream is not None:
            self._next = self._produce()
        return cast("BatchT", current.batch)

    def _produce(self) -> _Ahead[BatchT] | None:
        try:
            maker = next(self._makers)
        except StopIteration:
            return None
        try:
            if self._stream is None or self._prepare is None:
                batch = maker()
                return _Ahead(batch=batch if self._prepare is None else self._prepare(batch))
            with backends.on_stream(self._stream):
                batch = self._prepare(maker())
                ready = backends.record_event(self._stream)
            return _Ahead(batch=batch, ready=ready)
        except Exception as error:
            return _Ahead(error=error)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of a batch, through dataclasses, mappings, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_in(getattr(value, entry.name))
    elif isinstance(value, Mapping):
        for part in cast("Mapping[Any, Any]", value).values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in cast("list[Any]", value):
            yield from tensors_in(part)
