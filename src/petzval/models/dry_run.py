"""What a computation needs, from its shapes alone: peak bytes and operations, nothing computed.

The very code that will run is run on tensors of torch's meta device, which have shapes and no
numbers, while a dispatch mode keeps the books: bytes of storages that are alive, the matrix
products as `torch.utils.flop_counter` counts them, and the bytes that all other operations read and
write. So the figures cannot drift from the code.

Departures from what a device does, all stated:
1. Fused attention is taken for granted: its result is counted, its scores are not.
2. A CPU's products and convolutions (oneDNN) lay their operands out anew beside the originals:
   `scratch` adds those copies for the time of the operation.
3. An allocator's rounding and what it keeps for later are not counted.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")

LARGE_BLOCK = 2**20
"""Bytes of a tensor for which an allocator that keeps nothing asks the system each time."""

_MOVES_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What a computation needs beside the weights and inputs that were there before.

    Attributes:
        peak_bytes: the most that was alive at one moment.
        flops: operations of matrix products, two a multiply-add.
        moved_bytes: that everything but products reads and writes, an operation at a time.
        made_bytes: of all new tensors of a megabyte and more, one after the other.
    """

    peak_bytes: int
    flops: int
    moved_bytes: int = 0
    made_bytes: int = 0

    def then(self, other: Footprint) -> Footprint:
        """One computation after the other, the first one's memory given back."""
        return Footprint(
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
            flops=self.flops + other.flops,
            moved_bytes=self.moved_bytes + other.moved_bytes,
            made_bytes=self.made_bytes + other.made_bytes,
        )

    def times(self, count: float) -> Footprint:
        """The same again and again."""
        return replace(
            self,
            flops=round(self.flops * count),
            moved_bytes=round(self.moved_bytes * count),
            made_bytes=round(self.made_bytes * count),
        )

    def less(self, part: Footprint) -> Footprint:
        """Without the operations of a part of it; its memory stays."""
        return replace(
            self,
            flops=self.flops - part.flops,
            moved_bytes=self.moved_bytes - part.moved_bytes,
            made_bytes=self.made_bytes - part.made_bytes,
        )


NOTHING = Footprint(peak_bytes=0, flops=0)


@torch.no_grad()
def dry_run(work: Callable[[], object], *, scratch: bool = False) -> Footprint:
    """Run `work`, whose tensors are all on the meta device, and say what it would need.

    Args:
        work: makes its inputs itself, so that they count; weights are made before and do not.
        scratch: add the copies that a CPU's library makes of operands; see departure 2.
    """
    books = _Books(scratch=scratch)
    with books, _FusedAttention(books):
        result = work()
    del result
    return Footprint(
        peak_bytes=books.peak, flops=books.flops, moved_bytes=books.moved, made_bytes=books.made
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What an operation gave for arguments of these shapes: tensors of its own, and its products.

    Attributes:
        outputs: (shape, strides, type) of each.
        several: whether it returns a tuple.
        flops: see `Footprint`.
    """

    outputs: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
    several: bool
    flops: int


_KNOWN: dict[Any, _Known] = {}
"""A network asks for the same few shapes again and again, and many a shape is found in python."""

_MOST_KNOWN = 20_000


class _Books(TorchDispatchMode):
    """Counts the storages that are alive, and operations."""

    def __init__(self, *, scratch: bool) -> None:
        super().__init__()
        self.scratch = scratch
        self.live = 0
        self.peak = 0
        self.flops = 0
        self.moved = 0
        self.made = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here, and torch's compiler takes two seconds to import."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = _tensors(args)
        for tensor in given:
            self._enter(tensor, num_bytes=0)  # a weight: it was there before
        out, flops = _outcome(func, args, kwargs or {})
        made = _tensors(out)
        for tensor in made:
            self._enter(tensor, num_bytes=tensor.untyped_storage().nbytes())
        self.flops += flops
        packet = func.overloadpacket
        still = _shares(func, given, made) or packet.__name__ in _MOVES_NOTHING
        if not (still or packet in flop_registry):
            self.moved += sum(tensor.nbytes for tensor in (*given, *made))
        scratch = self.scratch and packet.__name__ in _PRODUCTS
        extra = sum(tensor.nbytes for tensor in given) if scratch else 0
        self.peak = max(self.peak, self.live + extra)
        return out

    def _enter(self, tensor: Tensor, *, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        name = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if name not in self._known:
            self._known.add(name)
            self.live += num_bytes
            self.made += num_bytes if num_bytes >= LARGE_BLOCK else 0
            weakref.finalize(storage, self._leave, name, num_bytes)

    def _leave(self, name: int, num_bytes: int) -> None:
        self._known.discard(name)
        self.live -= num_bytes


class _FusedAttention(TorchFunctionMode):
    """The meta device has no fused attention and would lay out all scores."""

    def __init__(self, books: _Books) -> None:
        super().__init__()
        self._books = books

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = cast("tuple[Tensor, Tensor, Tensor]", args[:3])
        pairs = math.prod(query.shape[:-1]) * key.shape[-2]
        self._books.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def _outcome(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, int]:
    """What an operation gives, and its products; one that was met before is not run again."""
    key = _signature(func, args, kwargs)
    known = None if key is None else _KNOWN.get(key)
    if known is not None:
        made = [
            torch.empty_strided(*each[:2], dtype=each[2], device="meta") for each in known.outputs
        ]
        return (tuple(made) if known.several else made[0]), known.flops
    out = func(*args, **kwargs)
    counted = flop_registry.get(func.overloadpacket)
    flops = 0 if counted is None else int(counted(*args, **kwargs, out_val=out))
    made = _tensors(out)
    parts = out if isinstance(out, tuple) else (out,)
    fresh = all(each.is_meta for each in made) and not _shares(func, _tensors(args), made)
    if key is not None and fresh and len(made) == len(parts):
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[key] = _Known(
            tuple((each.shape, each.stride(), each.dtype) for each in made),
            several=isinstance(out, tuple),
            flops=flops,
        )
    return out, flops


def _shares(func: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> bool:
    """Whether results lie in memory that was given, unchanged; not every operation declares it."""
    if func.is_view or func._schema.is_mutable:
        return bool(func.is_view)
    names = {each.untyped_storage()._cdata for each in given}  # pyright: ignore[reportPrivateUsage]
    return any(each.untyped_storage()._cdata in names for each in made)  # pyright: ignore[reportPrivateUsage]


def _signature(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """All that the shapes of new tensors depend on; None where the results share memory."""
    if func.is_view or func._schema.is_mutable:
        return None
    if any(each.alias_info is not None for each in func._schema.returns):
        return None
    try:
        key = (func, *map(_described, args), *((k, _described(v)) for k, v in kwargs.items()))
        hash(key)
    except TypeError:
        return None
    return key


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device)
    if isinstance(value, list | tuple):
        return tuple(_described(each) for each in cast("Sequence[Any]", value))
    return (type(value), value)


def _tensors(out: Any) -> list[Tensor]:
    parts = cast("Sequence[Any]", out) if isinstance(out, tuple | list) else (out,)
    return [part for part in parts if isinstance(part, Tensor)]
