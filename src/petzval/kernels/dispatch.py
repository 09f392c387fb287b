"""Which arithmetic runs, and why. The networks import from here and nowhere else.

`reference()` switches everything inside its block to the slow truth, for tests and benchmarks; what
is compiled keeps the fast paths.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.kernels import backends, fast, varlen
from petzval.kernels import reference as slow
from petzval.kernels.sequences import Sequences

_use_reference: ContextVar[bool] = ContextVar("petzval_use_reference", default=False)


def _in_reference() -> bool:
    """Inside a `reference` block; never in a compiled graph, which cannot read the variable."""
    return not torch.compiler.is_compiling() and _use_reference.get()


def _has_complex(device: torch.device) -> bool:
    return device.type != "mps"


@contextmanager
def reference() -> Generator[None, None, None]:
    """Run the slow reference arithmetic inside this block."""
    token = _use_reference.set(True)
    try:
        yield
    finally:
        _use_reference.reset(token)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelChoice:
    """One line of `petzval doctor`: what runs for an operation, and why."""

    operation: str
    kernel: str
    reason: str


def describe(device: torch.device) -> list[KernelChoice]:
    """The kernels that this device would use, with the reason for each."""
    flash = device.type == "cuda" and torch.backends.cuda.flash_sdp_enabled()
    scaled = backends.half_dtype(device) == torch.float16
    packed, packed_reason = varlen.choose(device, torch.bfloat16)
    return [
        KernelChoice(
            operation="joint attention",
            kernel="scaled_dot_product_attention" + (" (flash)" if flash else ""),
            reason="no mask is needed where nothing is padded, so the fused kernels apply",
        ),
        KernelChoice(
            operation="rotary positions",
            kernel="complex product" if _has_complex(device) else "plain products",
            reason="one pass in float32" if _has_complex(device) else "no complex numbers here",
        ),
        KernelChoice(
            operation="block products",
            kernel="float16, scaled by powers of two" if scaled else "torch linear",
            reason="no bfloat16 here, and float16 alone overflows" if scaled else "bfloat16 holds",
        ),
        KernelChoice(operation="packed attention", kernel=packed, reason=packed_reason),
        KernelChoice(
            operation="attention with sinks",
            kernel="scaled_dot_product_attention",
            reason="the sink is one more key of value zero; exact",
        ),
        KernelChoice(
            operation="norm and modulation",
            kernel="torch rms_norm",
            reason="norm weight folded into the modulation of each picture",
        ),
        KernelChoice(
            operation="upsampling convolution",
            kernel="four 2x2 convolutions" if device.type == "cuda" else "interpolate + 3x3",
            reason="16 products in place of 36 per small pixel"
            if device.type == "cuda"
            else "memory traffic outweighs the saved products on this device",
        ),
        KernelChoice(
            operation="MXFP4 experts",
            kernel="de-quantise one expert at a time",
            reason="no 4-bit matrix kernel in this build of torch; memory stays near the file's",
        ),
    ]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.reference.rms_norm`."""
    return (slow if _in_reference() else fast).rms_norm(x, weight, eps)


def rms_norm_float32_weight(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.reference.rms_norm_float32_weight`."""
    return (slow if _in_reference() else fast).rms_norm_float32_weight(x, weight, eps)


def rms_norm_modulate(
    x: Tensor,
    weight: Tensor,
    eps: float,
    shift: Tensor,
    scale: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """See `kernels.reference.rms_norm_modulate`."""
    module = slow if _in_reference() else fast
    return module.rms_norm_modulate(x, weight, eps, shift, scale, rows)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.reference.rotate_interleaved`."""
    # The fast form multiplies complex numbers, for which the compiler has no code of its own.
    plain = torch.compiler.is_compiling() or _in_reference() or not _has_complex(x.device)
    return (slow if plain else fast).rotate_interleaved(x, cos, sin)


def attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """See `kernels.reference.attention`."""
    return (slow if _in_reference() else fast).attention(query, key, value, key_mask)


def scaled_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """See `kernels.fast.scaled_attention`: for devices that have float16 and no bfloat16."""
    module = slow if _in_reference() else fast
    return module.scaled_attention(query, key, value, key_mask)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    """See `kernels.reference.packed_attention`."""
    module = slow if _in_reference() else fast
    return module.packed_attention(query, key, value, sequences)


def sink_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, allowed: Tensor
) -> Tensor:
    """See `kernels.reference.sink_attention`."""
    module = slow if _in_reference() else fast
    return module.sink_attention(query, key, value, sinks, allowed)


def upsample_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `kernels.reference.upsample_convolution`; the collapsed form is used on CUDA."""
    collapsed = x.is_cuda and not _in_reference()
    return (fast if collapsed else slow).upsample_convolution(x, weight, bias)
