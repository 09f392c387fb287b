"""From a function to a program of Triton's, whatever was wrapped around the function meanwhile."""

# Triton's own types are known to its compiler alone.
# pyright: basic, reportMissingModuleSource=false

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton


def program(function: Callable[..., Any]) -> Any:
    """`triton.jit` of a function's own source.

    Triton looks names up where the function was written. Checks of shapes, which tests put around
    every function of this package, are written elsewhere, where `tl` means nothing.
    """
    return triton.jit(inspect.unwrap(function))
