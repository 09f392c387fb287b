"""What a computation needs, from its shapes alone: peak bytes and operations, nothing computed.

The very code that will run is run on tensors of torch's meta device, which have shapes and no
numbers, while a dispatch mode keeps the books: bytes of storages that are alive, and the matrix
products as `torch.utils.flop_counter` counts them. So the figures cannot drift from the code.

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
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What a computation needs beside the weights and inputs that were there before.

    Attributes:
        peak_bytes: the most that was alive at one moment.
        flops: operations of matrix products, two a multiply-add.
    """

    peak_bytes: int
    flops: int

    def then(self, other: Footprint) -> Footprint:
        """One computation after the other, the first one's memory given back."""
        return Footprint(
            peak_bytes=max(self.peak_bytes, other.peak_bytes), flops=self.flops + other.flops
        )

    def times(self, count: int) -> Footprint:
        """The same again and again."""
        return Footprint(peak_bytes=self.peak_bytes, flops=self.flops * count)


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
    return Footprint(peak_bytes=books.peak, flops=books.flops)


class _Books(TorchDispatchMode):
    """Counts the storages that are alive, and operations."""

    def __init__(self, *, scratch: bool) -> None:
        super().__init__()
        self.scratch = scratch
        self.live = 0
        self.peak = 0
        self.flops = 0
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
        for tensor in _tensors(list(args)):
            self._enter(tensor, num_bytes=0)  # a weight: it was there before
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._enter(tensor, num_bytes=tensor.untyped_storage().nbytes())
        packet = func.overloadpacket
        if packet in flop_registry:
            self.flops += int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        extra = _operand_bytes(args) if self.scratch and packet.__name__ in _PRODUCTS else 0
        self.peak = max(self.peak, self.live + extra)
        return out

    def _enter(self, tensor: Tensor, *, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        name = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if name not in self._known:
            self._known.add(name)
            self.live += num_bytes
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


def _tensors(out: Any) -> list[Tensor]:
    parts = cast("Sequence[Any]", out) if isinstance(out, tuple | list) else (out,)
    return [part for part in parts if isinstance(part, Tensor)]


def _operand_bytes(args: Sequence[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(list(args)))
