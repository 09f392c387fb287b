"""Whether the fused kernels in Triton, and float8 products, may be used on a device.

Nothing is believed: on first use each kernel runs on a small input of the device and is compared
with its reference. One that does not compile there, or gives something else, is not used in that
process, and `petzval doctor` says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import TypeAlias

import torch
from torch import Tensor

from petzval.kernels import fast, reference
from petzval.kernels.mxfp4 import encode_mxfp4
from petzval.kernels.sequences import FusedStream

Result: TypeAlias = tuple[str, Tensor, Tensor]
"""(name, what the kernel gave, what its reference gave)."""

SWITCH = "PETZVAL_TRITON"
"""Environment variable: 0 leaves the fused kernels unused."""

TRITON_CAPABILITY = (8, 0)
FLOAT8_CAPABILITY = (8, 9)

_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference from the reference, relative to the largest value: a few roundings."""

_FLOAT8_LIMIT = 1e-2
"""Of a float8 product against its emulation: bfloat16's rounding, and the hardware's sums."""

_CODE_LIMIT = 0.08
"""Of a code: one step of the largest, where a quotient was rounded the other way."""


def triton_ready(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether the kernels in Triton run for values of this type on this device, and why."""
    if device.type != "cuda":
        return False, f"Triton's kernels are for CUDA, this is {device.type}"
    if os.environ.get(SWITCH, "1") == "0":
        return False, f"{SWITCH} is 0"
    return _triton_ready(device, dtype)


def float8_ready(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether this device multiplies float8 operands, for results of this type, and why."""
    if device.type != "cuda":
        return False, f"float8 products are for CUDA, this is {device.type}"
    return _float8_ready(device, dtype)


def experts_ready(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether the mixture of experts runs on its MXFP4 weights as they are, and why.

    In float32 it does not: whoever asks for that wants the products of the decoded matrices.
    """
    if dtype == torch.float32:
        return False, "in float32 each expert is decoded"
    usable, reason = triton_ready(device, dtype)
    return _expert_trial(_index(device), dtype) if usable else (usable, reason)


@lru_cache(maxsize=64)
def _triton_ready(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    if not torch.cuda.is_available():
        return False, "there is no CUDA device"
    if find_spec("triton") is None:
        return False, "triton is not installed"
    if dtype not in _LIMITS:
        return False, f"not for {dtype}"
    return _triton_trial(_index(device), dtype)


@lru_cache(maxsize=64)
def _float8_ready(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    if not torch.cuda.is_available():
        return False, "there is no CUDA device"
    if dtype != torch.bfloat16:
        return False, "products scaled by rows come in bfloat16"
    if torch.version.hip is not None:
        return False, "ROCm's devices differ in their float8 types"
    if torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        return False, "float8 products need compute capability 8.9"
    return _float8_trial(_index(device), dtype)


def _index(device: torch.device) -> int:
    return torch.empty(0, device=device).get_device()  # "cuda" alone names the current one


def _triton_trial(index: int, dtype: torch.dtype) -> tuple[bool, str]:
    if torch.cuda.get_device_capability(index) < TRITON_CAPABILITY:
        return False, "Triton's kernels need compute capability 8.0"
    like = torch.empty(0, device=f"cuda:{index}", dtype=dtype)
    try:
        return verdict(differences(like), _LIMITS[dtype])
    except Exception as error:  # whatever a compiler or a driver may say
        return False, f"the trial failed: {_first_line(error)}"


def _float8_trial(index: int, dtype: torch.dtype) -> tuple[bool, str]:
    like = torch.empty(0, device=f"cuda:{index}", dtype=dtype)
    try:
        x, weight, bias = (_draw(shape, like) for shape in ((32, 64), (48, 64), (48,)))
        codes, scale = reference.encode_float8_rows(weight)
        got = fast.float8_linear(x, codes, scale, bias)
        expected = reference.float8_linear(x, codes, scale, bias)
        if _triton_ready(like.device, dtype)[0]:
            from petzval.kernels.triton import launch

            codes_here = launch.encode_float8_rows(x)[0]
            encoded = ("float8 codes", codes_here, reference.encode_float8_rows(x)[0])
            usable, reason = verdict([encoded], _CODE_LIMIT)
            if not usable:
                return usable, reason
        return verdict([("float8_linear", got, expected)], _FLOAT8_LIMIT)
    except Exception as error:
        return False, f"the trial failed: {_first_line(error)}"


@lru_cache(maxsize=64)
def _expert_trial(index: int, dtype: torch.dtype) -> tuple[bool, str]:
    like = torch.empty(0, device=f"cuda:{index}", dtype=dtype)
    try:
        return verdict(expert_differences(like), _LIMITS[dtype])
    except Exception as error:
        return False, f"the trial failed: {_first_line(error)}"


def expert_differences(like: Tensor) -> Iterator[Result]:
    """Products with experts in MXFP4: one row for all choices of a token, and one for each."""
    from petzval.kernels.triton import experts

    num_experts, inputs, outputs = 3, 96, 80
    blocks, scales = encode_mxfp4(_draw((num_experts, outputs, inputs), like.float()))
    bias = _draw((num_experts, outputs), like)
    order = torch.arange(37, device=like.device)
    chosen = torch.stack((order % 2, 2 - (order % 5 == 0).long()), dim=1)
    plan = experts.schedule(chosen, num_experts)
    for name, shape in (("shared", (37, inputs)), ("each", (37, 2, inputs))):
        args = (_draw(shape, like), chosen, blocks, scales, bias)
        yield (
            f"expert_products, {name}",
            experts.expert_products(*args, plan),
            reference.expert_products(*args),
        )


def verdict(results: Iterable[Result], limit: float) -> tuple[bool, str]:
    """Whether all results are their references', and a sentence about it."""
    worst = 0.0
    for name, got, expected in results:
        wide = expected.float()
        difference = float((got.float() - wide).abs().max() / wide.abs().max().clamp_min(1e-6))
        if not difference <= limit:
            return False, f"{name} differs from its reference by {difference:.1e} here"
        worst = max(worst, difference)
    return True, f"tried here against its reference: largest difference {worst:.1e}"


def differences(like: Tensor) -> Iterator[Result]:
    """Every kernel and its reference on one small input of `like`'s device and type."""
    from petzval.kernels.triton import launch

    width, num_heads, head_width = 128, 2, 64
    angles = _draw((12, head_width // 2), like.float())
    norms = [_draw((head_width,), like) for _ in range(2)]
    image = FusedStream(_draw((2, 8, 3 * num_heads * head_width), like), *norms)
    text = FusedStream(_draw((2, 4, 3 * num_heads * head_width), like), *norms)
    rope = (angles.cos(), angles.sin())
    got = launch.joint_qkv(image, text, 1e-6, *rope, text_queries=True)
    expected = reference.joint_qkv(image, text, 1e-6, *rope, text_queries=True)
    for part, ours, theirs in zip(("query", "key", "value"), got, expected, strict=True):
        yield f"joint_qkv's {part}", ours, theirs
    x, y, weight = _draw((2, 8, width), like), _draw((2, 8, width), like), _draw((width,), like)
    shift, scale, gate = _draw((2, 3 * width), like).chunk(3, dim=-1)
    args = (x, weight, 1e-6, shift, scale)
    yield "rms_norm_modulate", launch.rms_norm_modulate(*args), reference.rms_norm_modulate(*args)
    gated = (x, gate, y)
    yield "gated_residual", launch.gated_residual(*gated), reference.gated_residual(*gated)
    yield "swiglu", launch.swiglu(x, y), reference.swiglu(x, y)


def _draw(shape: tuple[int, ...], like: Tensor) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(like)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
