"""From a function to a program of Triton's, and its launch on the device of its tensors."""

# Triton's own types are known to its compiler alone.
# pyright: basic, reportMissingModuleSource=false

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
from torch import Tensor

from petzval.kernels import backends


def program(function: Callable[..., Any]) -> Any:
    """`triton.jit` of a function's own source.

    Triton looks names up where the function was written. Checks of shapes, which tests put around
    every function of this package, are written elsewhere, where `tl` means nothing.
    """
    return triton.jit(inspect.unwrap(function))


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *args: Any, **constants: Any) -> None:
    """Run a program where a tensor is: Triton itself takes whichever device is current."""
    with backends.on_device(like):
        kernel[grid](*args, **constants)
