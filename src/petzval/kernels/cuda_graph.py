"""A call of CUDA kernels, recorded once and launched as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class CudaGraph:
    """A function recorded once; inputs are copied into the places it was recorded with.

    Args:
        function: tensors in, one tensor out; it depends on their shapes and numbers alone.
        inputs: of the shapes it will be replayed with, on the current CUDA device.
    """

    WARM_UPS = 3
    """Calls before the recording: kernels are compiled and chosen in them."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self._inputs = [x.clone() for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.WARM_UPS):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(*self._inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """The function's result, in memory of its own."""
        for place, x in zip(self._inputs, inputs, strict=True):
            place.copy_(x)
        self._graph.replay()
        return self._output.clone()

    def release(self) -> None:
        """Give the graph's memory back."""
        self._graph.reset()
        self._inputs.clear()
