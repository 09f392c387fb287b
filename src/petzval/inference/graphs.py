"""CUDA graphs: a whole call of the denoiser recorded once a size, then launched as one.

What it saves is the time that the CPU takes to launch a thousand kernels, which shows where the
pictures are small or few. A graph holds the memory of its call, so that only a few are kept: the
one that was not used for the longest time goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from petzval.kernels.cuda_graph import CudaGraph
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.models.rope import RopeTables

Function: TypeAlias = Callable[..., Tensor]
"""Tensors in, one tensor out; what it does depends on their shapes and numbers alone."""

MAX_TOKENS = 2048
"""Image tokens of a batch above which launching is taken to hide behind computing."""

CAPACITY = 4


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

    Args:
        function: see `Function`.
        capacity: graphs that are kept, at least 1.
        capture: records a call.

    Raises:
        ValueError: a capacity below 1.
    """

    def __init__(
        self, function: Function, *, capacity: int = CAPACITY, capture: Capture = CudaGraph
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a cache needs room for one graph at least, got {capacity}")
        self.capacity = capacity
        self._function = function
        self._capture = capture
        self._graphs: OrderedDict[tuple[object, ...], Graph] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)
        if key not in self._graphs:
            while len(self._graphs) >= self.capacity:
                _, oldest = self._graphs.popitem(last=False)
                oldest.release()
            self._graphs[key] = self._capture(self._function, inputs)
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(inputs)

    def __len__(self) -> int:
        return len(self._graphs)

    def clear(self) -> None:
        """Release all graphs: the weights that they read are about to move."""
        while self._graphs:
            self._graphs.popitem()[1].release()


class GraphedDenoiser:
    """Calls of a denoiser through a `GraphCache`; `MMDiT.forward` without masks and packing.

    Args:
        denoiser: its weights must stay where they are.
        max_tokens: larger batches are called as they are.
        capacity, capture: as in `GraphCache`.
    """

    def __init__(
        self,
        denoiser: MMDiT,
        *,
        max_tokens: int = MAX_TOKENS,
        capacity: int = CAPACITY,
        capture: Capture = CudaGraph,
    ) -> None:
        self.denoiser = denoiser
        self.max_tokens = max_tokens
        self.graphs = GraphCache(self._flat, capacity=capacity, capture=capture)

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, text: Tensor | None, modulation: StepModulation, rope: RopeTables
    ) -> Tensor:
        if tokens.shape[0] * tokens.shape[1] > self.max_tokens:
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
