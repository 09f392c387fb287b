"""A call of CUDA kernels, recorded once and launched as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from petzval.kernels import backends

SWITCH = "PETZVAL_GRAPHS"
"""Environment variable: 0 launches every kernel by itself."""


def graphs_ready(device: torch.device) -> tuple[bool, str]:
    """Whether calls are recorded on this device, and why."""
    if device.type != "cuda":
        return False, f"CUDA graphs are for CUDA, this is {device.type}"
    if os.environ.get(SWITCH, "1") == "0":
        return False, f"{SWITCH} is 0"
    if torch.version.hip is not None:
        return False, "never tried on ROCm"
    return True, "what is called often in one size is launched as one"


class CudaGraph:
    """A function recorded once; inputs are copied into the places it was recorded with.

    Args:
        function: tensors in, one tensor out; it depends on their shapes and numbers alone.
        inputs: of the shapes it will be replayed with, on one CUDA device.

    Other threads may use the device meanwhile: only this thread's calls are recorded.
    """

    WARM_UPS = 3
    """Calls before the recording: kernels are compiled and chosen in them."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self._inputs = [x.clone() for x in inputs]
        self._graph = torch.cuda.CUDAGraph()
        with backends.on_device(inputs[0]):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(self.WARM_UPS):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """The function's result, in memory of its own."""
        with backends.on_device(inputs[0]):
            for place, x in zip(self._inputs, inputs, strict=True):
                place.copy_(x)
            self._graph.replay()
            return self._output.clone()

    def release(self) -> None:
        """Give the graph's memory back."""
        self._graph.reset()
        self._inputs.clear()
        del self._output
