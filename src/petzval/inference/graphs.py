"""CUDA graphs: a whole call of the denoiser recorded once a size, then launched as one.

What it saves is the time that the CPU takes to launch a thousand kernels, which shows where the
pictures are small or few. Recording costs a few calls, and prompts differ in length: a size is
recorded when it was called some times already. A graph holds the memory of its call, so that only a
few are kept: the one that was not used for the longest time goes first.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from petzval.kernels import dispatch
from petzval.kernels.cuda_graph import CudaGraph, graphs_ready
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.models.rope import RopeTables

Function: TypeAlias = Callable[..., Tensor]
"""Tensors in, one tensor out; what it does depends on their shapes and numbers alone."""

MAX_TOKENS = 4608
"""Image tokens of a batch above which launching is taken to hide behind computing: all sizes about
1024 x 1024 are below. A thousand launches take some 20 ms, as long as such a call computes."""

CAPACITY = 4

PATIENCE = 8
"""Calls of one size before it is recorded: recording costs about four."""

_REMEMBERED = 256
"""Sizes whose calls are counted."""


class Graph(Protocol):
    """A recorded call."""

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """The function's result for inputs of the recorded shapes, in memory of its own."""
        ...

    def release(self) -> None:
        """Give the graph's memory back."""
        ...


Capture: TypeAlias = Callable[[Function, Sequence[Tensor]], Graph]


class GraphCache:
    """A function, recorded once for each set of shapes; at most `capacity` records are kept.

    Where a recording fails nothing is recorded any more, and one warning says why: the function
    itself gives the same.

    Args:
        function: see `Function`.
        capacity: graphs that are kept, at least 1.
        patience: calls of a set of shapes before it is recorded.
        capture: records a call.

    Attributes:
        failure: why nothing is recorded any more; None while all is well.

    Raises:
        ValueError: a capacity below 1.
    """

    def __init__(
        self,
        function: Function,
        *,
        capacity: int = CAPACITY,
        patience: int = 0,
        capture: Capture = CudaGraph,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a cache needs room for one graph at least, got {capacity}")
        self.capacity = capacity
        self.patience = patience
        self._function = function
        self._capture = capture
        self._graphs: OrderedDict[tuple[object, ...], Graph] = OrderedDict()
        self._calls: OrderedDict[tuple[object, ...], int] = OrderedDict()
        self.failure: str | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)
        if key not in self._graphs and not (self._is_due(key) and self._record(key, inputs)):
            return self._function(*inputs)
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(inputs)

    def __len__(self) -> int:
        return len(self._graphs)

    def clear(self) -> None:
        """Release all graphs: the weights that they read are about to move or to change."""
        while self._graphs:
            self._graphs.popitem()[1].release()

    def _is_due(self, key: tuple[object, ...]) -> bool:
        if self.failure is not None:
            return False
        seen = self._calls.pop(key, 0)
        self._calls[key] = seen + 1
        if len(self._calls) > _REMEMBERED:
            self._calls.popitem(last=False)
        return seen >= self.patience

    def _record(self, key: tuple[object, ...], inputs: Sequence[Tensor]) -> bool:
        while len(self._graphs) >= self.capacity:
            _, oldest = self._graphs.popitem(last=False)
            oldest.release()
        try:
            self._graphs[key] = self._capture(self._function, inputs)
        except RuntimeError as error:  # memory that ran out is one, too
            self.failure = (str(error).strip().splitlines() or [""])[0][:200]
            self.clear()
            warnings.warn(f"CUDA graphs are left out from here on: {self.failure}", stacklevel=2)
            return False
        return True


class GraphedDenoiser:
    """Calls of a denoiser through a `GraphCache`; `MMDiT.forward` without masks and packing.

    A replay calls no hook of a module. Inside `dispatch.reference` and `dispatch.portable` nothing
    is replayed.

    Args:
        denoiser: its weights must stay where they are, and what they are.
        max_tokens: larger batches are called as they are.
        capacity, patience, capture: as in `GraphCache`.
    """

    def __init__(
        self,
        denoiser: MMDiT,
        *,
        max_tokens: int = MAX_TOKENS,
        capacity: int = CAPACITY,
        patience: int = PATIENCE,
        capture: Capture = CudaGraph,
    ) -> None:
        self.denoiser = denoiser
        self.max_tokens = max_tokens
        self.graphs = GraphCache(self._flat, capacity=capacity, patience=patience, capture=capture)

    @classmethod
    def of(cls, denoiser: MMDiT, *, stays: bool) -> GraphedDenoiser:
        """Calls that are recorded where the device records and PETZVAL_GRAPHS is not 0.

        Args:
            stays: whether the weights do.
        """
        ready, _ = graphs_ready(denoiser.img_in.weight.device)
        return cls(denoiser, max_tokens=MAX_TOKENS if ready and stays else 0)

    def clear(self) -> None:
        """Record anew: what the denoiser computes with has changed."""
        self.graphs.clear()

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, text: Tensor | None, modulation: StepModulation, rope: RopeTables
    ) -> Tensor:
        if tokens.shape[0] * tokens.shape[1] > self.max_tokens or not dispatch.is_free():
            return self.denoiser(tokens, text, modulation, rope)
        blocks = torch.stack((torch.stack(modulation.image), torch.stack(modulation.text)))
        words = () if text is None else (text,)
        return self.graphs(tokens, blocks, modulation.final, rope.cos, rope.sin, *words)

    def _flat(
        self,
        tokens: Tensor,
        blocks: Tensor,
        final: Tensor,
        cos: Tensor,
        sin: Tensor,
        text: Tensor | None = None,
    ) -> Tensor:
        """The same call as a function of tensors alone."""
        image, words = (tuple(part.unbind(0)) for part in blocks.unbind(0))
        modulation = StepModulation(image=image, text=words, final=final)
        rope = RopeTables(cos=cos, sin=sin, num_image_tokens=tokens.shape[1])
        return self.denoiser(tokens, text, modulation, rope)
