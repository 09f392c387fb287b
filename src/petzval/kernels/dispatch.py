"""Which arithmetic runs, and why. The networks import from here and nowhere else.

`reference()` switches everything inside its block to the slow truth, `portable()` leaves out the
kernels in Triton; both are for tests and benchmarks. What is compiled keeps the portable fast
paths, of which the compiler makes kernels of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.kernels import backends, fast, fused, varlen
from petzval.kernels import reference as slow
from petzval.kernels.cuda_graph import graphs_ready
from petzval.kernels.quantise import decode_rows
from petzval.kernels.sequences import FusedStream, Sequences

_use_reference: ContextVar[bool] = ContextVar("petzval_use_reference", default=False)
_plain_attention: ContextVar[bool] = ContextVar("petzval_plain_attention", default=False)
_only_portable: ContextVar[bool] = ContextVar("petzval_only_portable", default=False)

ANSWERS_OF_A_DEVICE = (fused.float8_ready, varlen.choose)
"""Functions that compiled code asks, and that give one answer for a device and a type."""

COLLAPSING = ("cpu", "cuda", "meta")
"""Devices that double and convolve in one; meta, since a dry run stands for one of the others."""


def _in_reference() -> bool:
    """Inside a `reference` block; never in a compiled graph, which cannot read the variable."""
    return not torch.compiler.is_compiling() and _use_reference.get()


def _reference_attention() -> bool:
    return _in_reference() and _plain_attention.get()


@contextmanager
def reference(*, attention: bool = True) -> Generator[None, None, None]:
    """Run the slow reference arithmetic inside this block.

    Args:
        attention: False leaves attention its fused kernels, as programs have it that do nothing
            else for their speed.
    """
    tokens = _use_reference.set(True), _plain_attention.set(attention)
    try:
        yield
    finally:
        _use_reference.reset(tokens[0])
        _plain_attention.reset(tokens[1])


@contextmanager
def portable() -> Generator[None, None, None]:
    """Leave Triton's kernels out inside this block."""
    token = _only_portable.set(True)
    try:
        yield
    finally:
        _only_portable.reset(token)


def is_free() -> bool:
    """Whether all fast paths may run here: outside of `reference` and `portable` blocks."""
    return not (_use_reference.get() or _only_portable.get())


def _in_triton(x: Tensor) -> bool:
    """Whether Triton's kernels take this: on CUDA, uncompiled, and nobody wants a gradient."""
    if torch.compiler.is_compiling() or not x.is_cuda or torch.is_grad_enabled():
        return False
    return is_free() and fused.triton_ready(x.device, x.dtype)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelChoice:
    """One line of `petzval doctor`: what runs for an operation, and why."""

    operation: str
    kernel: str
    reason: str


def describe(device: torch.device) -> list[KernelChoice]:
    """The kernels that this device would use, with the reason for each."""
    scaled = backends.half_dtype(device) == torch.float16
    collapsing = device.type in COLLAPSING
    has_complex = fast.has_complex(device)
    graphs, graphs_reason = graphs_ready(device)
    packed, packed_reason = varlen.choose(device, torch.bfloat16)
    triton, triton_reason = fused.triton_ready(device, torch.bfloat16)
    experts, experts_reason = fused.experts_ready(device, backends.half_dtype(device))
    float8, float8_reason = fused.float8_ready(device, torch.bfloat16)
    norm = "rms_norm, the norm's weight folded into the modulation of each picture"
    return [
        KernelChoice(
            operation="joint attention",
            kernel="scaled_dot_product_attention" + _attention_kernels(device),
            reason="no mask is needed where nothing is padded, so the fused kernels apply",
        ),
        KernelChoice(
            operation="rotary positions",
            kernel="complex product" if has_complex else "plain products",
            reason="one pass in float32" if has_complex else "no complex numbers here",
        ),
        KernelChoice(
            operation="split, norm and rotation",
            kernel="Triton" if triton else "torch, written into the joint buffer",
            reason=triton_reason,
        ),
        KernelChoice(
            operation="norm and modulation",
            kernel="Triton" if triton else norm,
            reason=triton_reason,
        ),
        KernelChoice(
            operation="gated residual",
            kernel="Triton" if triton else "addcmul",
            reason=triton_reason,
        ),
        KernelChoice(
            operation="SwiGLU", kernel="Triton" if triton else "torch", reason=triton_reason
        ),
        KernelChoice(
            operation="float8 products",
            kernel="scaled by rows" if float8 else "weights decoded before each product",
            reason=float8_reason,
        ),
        KernelChoice(
            operation="block products",
            kernel="float16, scaled by powers of two" if scaled else "torch linear",
            reason="no bfloat16 here, and float16 alone overflows"
            if scaled
            else "bfloat16 and float32 hold all of the model's values",
        ),
        KernelChoice(operation="packed attention", kernel=packed, reason=packed_reason),
        KernelChoice(
            operation="launches",
            kernel="CUDA graphs" if graphs else "one by one",
            reason=graphs_reason,
        ),
        KernelChoice(
            operation="attention with sinks",
            kernel="scaled_dot_product_attention",
            reason="the sink is one more key of value zero; exact",
        ),
        KernelChoice(
            operation="upsampling convolution",
            kernel="four 2x2 convolutions" if collapsing else "interpolate + 3x3",
            reason="16 products in place of 36 per small pixel"
            if collapsing
            else f"the collapsed form was never tried on {device.type}",
        ),
        KernelChoice(
            operation="MXFP4 experts",
            kernel="Triton, decoded in registers" if experts else "decoded one at a time",
            reason=experts_reason,
        ),
    ]


def _attention_kernels(device: torch.device) -> str:
    """The fused kernels that torch may choose from, in its order of preference."""
    if device.type != "cuda":
        return ""
    cuda = torch.backends.cuda
    allowed = {
        "cuDNN": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "memory-efficient": cuda.mem_efficient_sdp_enabled(),
    }
    return f" ({', '.join(name for name, is_allowed in allowed.items() if is_allowed)})"


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
    if _in_triton(x):
        from petzval.kernels.triton import launch

        return launch.rms_norm_modulate(x, weight, eps, shift, scale, rows)
    module = slow if _in_reference() else fast
    return module.rms_norm_modulate(x, weight, eps, shift, scale, rows)


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
    """See `kernels.reference.gated_residual`."""
    if _in_triton(x):
        from petzval.kernels.triton import launch

        return launch.gated_residual(x, gate, y, rows)
    return (slow if _in_reference() else fast).gated_residual(x, gate, y, rows)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `kernels.reference.swiglu`."""
    if _in_triton(gate):
        from petzval.kernels.triton import launch

        return launch.swiglu(gate, up)
    return (slow if _in_reference() else fast).swiglu(gate, up)


def joint_qkv(
    image: FusedStream,
    text: FusedStream | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    *,
    text_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.reference.joint_qkv`."""
    if _in_triton(image.fused):
        from petzval.kernels.triton import launch

        if launch.fits(image.query_weight.shape[0]):
            return launch.joint_qkv(image, text, eps, cos, sin, text_queries=text_queries)
    module = slow if _in_reference() else fast
    return module.joint_qkv(image, text, eps, cos, sin, text_queries=text_queries)


def float8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b for weights in float8: float8 products where the device has them.

    Elsewhere the weight is decoded and the product is that of x's type, so that only the weight
    has been rounded.
    """
    if not _in_reference() and fused.float8_ready(x.device, x.dtype)[0]:
        rows = x.flatten(0, -2)
        if _in_triton(x):
            from petzval.kernels.triton import launch

            encoded = launch.encode_float8_rows(rows)
        else:
            encoded = fast.encode_float8_rows(rows)
        return fast.scaled_product(*encoded, codes, scale, bias, x)
    return torch.nn.functional.linear(x, decode_rows(codes, scale, x.dtype), bias)


def in_packed_experts(x: Tensor) -> bool:
    """Whether tokens like these meet MXFP4 experts as they are stored (`packed_experts`)."""
    return _in_triton(x) and fused.experts_ready(x.device, x.dtype)[0]


def packed_experts(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate_up: tuple[Tensor, Tensor, Tensor],
    down: tuple[Tensor, Tensor, Tensor],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Sum of weighted expert outputs, all experts at once; only where `in_packed_experts`.

    Args:
        x: [tokens, width].
        weights, chosen: [tokens, choices].
        gate_up, down: blocks, scales and bias, as `kernels.reference.expert_products` takes them.
        activation: between the two products, on their last dimension.
    """
    from petzval.kernels.triton import experts

    plan = experts.schedule(chosen, gate_up[2].shape[0])
    hidden = activation(experts.expert_products(x, chosen, *gate_up, plan))
    results = experts.expert_products(hidden, chosen, *down, plan)
    return (results.float() * weights[..., None].float()).sum(1).to(x.dtype)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.reference.rotate_interleaved`."""
    # The fast form multiplies complex numbers, for which the compiler has no code of its own.
    plain = torch.compiler.is_compiling() or _in_reference() or not fast.has_complex(x.device)
    return (slow if plain else fast).rotate_interleaved(x, cos, sin)


def attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """See `kernels.reference.attention`."""
    return (slow if _reference_attention() else fast).attention(query, key, value, key_mask)


def scaled_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """See `kernels.fast.scaled_attention`: for devices that have float16 and no bfloat16."""
    module = slow if _reference_attention() else fast
    return module.scaled_attention(query, key, value, key_mask)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    """See `kernels.reference.packed_attention`."""
    module = slow if _reference_attention() else fast
    return module.packed_attention(query, key, value, sequences)


def sink_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, allowed: Tensor
) -> Tensor:
    """See `kernels.reference.sink_attention`."""
    module = slow if _reference_attention() else fast
    return module.sink_attention(query, key, value, sinks, allowed)


def upsample_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `kernels.reference.upsample_convolution`; the collapsed form runs where it was tried."""
    collapsed = x.device.type in COLLAPSING and not _in_reference()
    return (fast if collapsed else slow).upsample_convolution(x, weight, bias)
