"""Compiled parts of networks: repeated blocks, which share a graph, not the whole around them.

A part's `forward` is replaced, so that no parameter is renamed and hooks stay outside of what is
compiled.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_GRAPHS = 128
"""Graphs of one function before the compiler gives up: one for each size of picture in use."""


def compiled(forward: Callable[..., Any], *, dynamic: bool | None) -> Callable[..., Any]:
    """A function compiled whole, without a break.

    Args:
        dynamic: True takes all sizes by one graph, False makes one for each; None makes one for the
            first size and another for all others.
    """
    limits: Any = importlib.import_module("torch._dynamo.config")
    limits.recompile_limit = max(limits.recompile_limit, _GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * _GRAPHS)
    return torch.compile(forward, fullgraph=True, dynamic=dynamic)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Set a module's `forward` beneath its hooks."""
    object.__setattr__(module, "forward", forward)


def compile_forwards(modules: Iterable[nn.Module], *, dynamic: bool | None = False) -> None:
    """Compile each module by itself; `dynamic` as in `compiled`. Nothing is computed yet."""
    for module in modules:
        replace_forward(module, compiled(module.forward, dynamic=dynamic))
