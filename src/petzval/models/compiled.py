"""Compiled parts of networks: repeated blocks, which share a graph, not the whole around them.

A part's `forward` is replaced, so that no parameter is renamed and hooks stay outside of what is
compiled.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from petzval.kernels import dispatch
from petzval.models.rope import RopeTables

_GRAPHS = 128
"""Graphs of one function before the compiler gives up: one for each size of picture in use."""


def compiled(forward: Callable[..., Any], *, dynamic: bool | None = False) -> Callable[..., Any]:
    """A function compiled whole, without a break.

    Args:
        dynamic: True takes all sizes by one graph, False makes one for each; None makes one for the
            first size and another for all others.
    """
    limits: Any = importlib.import_module("torch._dynamo.config")
    limits.recompile_limit = max(limits.recompile_limit, _GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * _GRAPHS)
    for answer in dispatch.ANSWERS_OF_A_DEVICE:  # they try kernels, which no graph can hold
        torch.compiler.assume_constant_result(answer)
    return torch.compile(forward, fullgraph=True, dynamic=dynamic)


def compiled_block(block: nn.Module) -> Callable[..., Any]:
    """A denoiser block's `forward`: a graph for each size of picture, for texts of any length.

    Prompts differ in length from picture to picture, and compiling anew takes longer than drawing.
    """
    forward = compiled(block.forward, dynamic=False)
    mark: Any = importlib.import_module("torch._dynamo").maybe_mark_dynamic

    def any_text(
        image: Tensor,
        text: Tensor | None,
        image_modulation: Tensor,
        text_modulation: Tensor,
        rope: RopeTables,
        *rest: Any,
        **options: Any,
    ) -> Any:
        if text is not None:
            for tensor, axis in ((text, 1), (rope.cos, 0), (rope.sin, 0)):
                mark(tensor, axis)
        return forward(image, text, image_modulation, text_modulation, rope, *rest, **options)

    return any_text


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile a denoiser's blocks for drawing; see `compiled_block`. Nothing is computed yet."""
    for block in blocks:
        replace_forward(block, compiled_block(block))


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Set a module's `forward` beneath its hooks."""
    object.__setattr__(module, "forward", forward)


def compile_forwards(modules: Iterable[nn.Module], *, dynamic: bool | None = False) -> None:
    """Compile each module by itself; `dynamic` as in `compiled`. Nothing is computed yet."""
    for module in modules:
        replace_forward(module, compiled(module.forward, dynamic=dynamic))
