"""Runs in a process of its own: Triton's kernels against their references, errors as JSON.

`triton_program.py DEVICE` gives {case: largest error, relative to the largest value}; under
TRITON_INTERPRET=1 the device is the CPU. `triton_program.py compile` gives {kernel and capability:
bytes of machine code}: the compiler needs no GPU.
"""

# Triton's own types are known to its compiler alone.
# pyright: basic, reportMissingModuleSource=false

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module

import torch
from torch import Tensor

from petzval.kernels import reference
from petzval.kernels.sequences import FusedStream

# Kernels of a machine without a GPU are compiled as they would be with one; Triton says that the
# default of an option will change.
warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")

Results = Iterator[tuple[str, Tensor, Tensor]]


def _draw(*shape: int, seed: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(like)


def joint_qkv(like: Tensor) -> Results:
    """With text and without, its queries wanted and not, heads that fill no power of two."""
    from petzval.kernels.triton import launch

    num_heads, width = 3, 16
    angles = _draw(9, width // 2, seed=9, like=like.float())
    norms = [_draw(width, seed=i, like=like) for i in range(4)]
    image = FusedStream(_draw(2, 5, 3 * num_heads * width, seed=5, like=like), norms[0], norms[1])
    text = FusedStream(_draw(2, 4, 3 * num_heads * width, seed=6, like=like), norms[2], norms[3])
    for name, stream, wanted in (
        ("text", text, True),
        ("silent text", text, False),
        ("bare", None, True),
    ):
        args = (image, stream, 1e-6, angles.cos(), angles.sin())
        got = launch.joint_qkv(*args, text_queries=wanted)
        expected = reference.joint_qkv(*args, text_queries=wanted)
        for part, ours, theirs in zip(("query", "key", "value"), got, expected, strict=True):
            yield f"joint_qkv, {name}, {part}", ours, theirs


def modulations(like: Tensor) -> Results:
    """A row of modulation for each picture, one for all, and one for each sample of a row."""
    from petzval.kernels.triton import launch

    x, y = _draw(2, 5, 24, seed=0, like=like), _draw(2, 5, 24, seed=1, like=like)
    weight = _draw(24, seed=2, like=like)
    six = _draw(2, 6 * 24, seed=3, like=like)
    rows = torch.tensor([0, 0, 1, 1, 1], device=like.device)
    for name, chosen, inputs, others, where in (
        ("each", six, x, y, None),
        ("one for all", six[:1], x, y, None),
        ("packed", six, x[:1], y[:1], rows),
    ):
        shift, scale, gate = chosen.chunk(6, dim=-1)[:3]
        args = (inputs, weight, 1e-6, shift, scale, where)
        yield (
            f"rms_norm_modulate, {name}",
            launch.rms_norm_modulate(*args),
            reference.rms_norm_modulate(*args),
        )
        gated = (inputs, gate, others, where)
        yield (
            f"gated_residual, {name}",
            launch.gated_residual(*gated),
            reference.gated_residual(*gated),
        )


def elementwise(like: Tensor) -> Results:
    """More values than a block holds, and a number that does not divide."""
    from petzval.kernels.triton import launch

    gate, up = _draw(3, 7, 61, seed=0, like=like) * 4, _draw(3, 7, 61, seed=1, like=like)
    yield "swiglu", launch.swiglu(gate, up), reference.swiglu(gate, up)


def float8_rows(like: Tensor) -> Results:
    """Codes and scales; codes are compared as the values they stand for.

    Triton's interpreter loses the carry where a mantissa rounds up to the next power of two
    (126.8 becomes 64), so that on a CPU the values are such as float8 has.
    """
    from petzval.kernels.triton import launch

    x = _draw(4, 40, seed=0, like=like)
    if like.device.type == "cpu":
        x = (x * 100).to(torch.float8_e4m3fn).to(like)
    x[:, 0] = 448
    x[1] *= 1024
    x[2] = 0
    codes, scales = launch.encode_float8_rows(x)
    theirs, their_scales = reference.encode_float8_rows(x)
    yield "float8 codes", codes.float(), theirs.float()
    yield "float8 scales", scales, their_scales


def experts(like: Tensor) -> Results:
    """Rows for all choices and for each, experts that nobody chose, more slots than a tile has."""
    from petzval.kernels import fused

    yield from fused.expert_differences(like)


def errors(device: str) -> dict[str, float]:
    """Largest difference of each case, relative to the largest value."""
    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        like = torch.empty(0, device=device, dtype=dtype)
        for cases in (joint_qkv, modulations, elementwise, float8_rows, experts):
            for name, got, expected in cases(like):
                assert got.dtype == expected.dtype and got.shape == expected.shape, name
                scale = expected.float().abs().max().clamp_min(1e-6)
                difference = (got.float() - expected.float()).abs().max() / scale
                found[f"{name}, {str(dtype).removeprefix('torch.')}"] = float(difference)
    return found


def machine_code() -> dict[str, int]:
    """Every kernel at the published sizes, for Ampere, Ada, Hopper and Blackwell."""
    from triton import compile

    from petzval.kernels.triton import expert_program, programs

    make_target = import_module("triton.backends.compiler").GPUTarget
    make_source = import_module("triton.compiler").ASTSource
    wide = {"WIDTH": 1536, "BLOCK": 2048}
    rows = wide | {"HAS_ROWS": False, "ONE": True}
    half, number = "*bf16", "i32"
    modulation = dict.fromkeys(("x", "weight", "shift", "scale", "rows", "out"), half)
    sizes = dict.fromkeys(("num_tokens", "start", "num_queries", "num_keys"), number)
    sources = {
        programs.split_norm_rotate: (
            dict.fromkeys(("fused", "query_weight", "key_weight"), half)
            | {"cos": "*fp32", "sin": "*fp32"}
            | dict.fromkeys(("query", "key", "value"), half)
            | sizes
            | {"eps": "fp32"},
            {"HEADS": 24, "HALF": 32, "HEAD_BLOCK": 32, "FIRST": 0},
        ),
        programs.norm_modulate: (
            modulation
            | dict.fromkeys(("num_tokens", "shift_stride", "scale_stride"), number)
            | {"eps": "fp32"},
            rows,
        ),
        programs.add_gated: (
            dict.fromkeys(("x", "gate", "y", "rows", "out"), half)
            | dict.fromkeys(("num_tokens", "gate_stride"), number),
            rows,
        ),
        programs.silu_times: (
            dict.fromkeys(("gate", "up", "out"), half) | {"count": number},
            {"BLOCK": 1024},
        ),
        programs.scale_row: (
            {"x": half, "codes": "*fp8e4nv", "scales": "*fp32"},
            wide | {"LARGEST": 448.0},
        ),
        expert_program.expert_tile: (
            {"x": half}
            | dict.fromkeys(("order", "starts", "tile_expert", "tile_first"), "*i32")
            | dict.fromkeys(("blocks", "scales"), "*u8")
            | dict.fromkeys(("bias", "out"), half)
            | dict.fromkeys(("num_columns", "plane"), number),
            {
                "NUM_BYTES": 1440,
                "NUM_EXPERTS": 32,
                "SLOTS_PER_ROW": 4,
                "COLUMNS": 64,
                "ROWS": 16,
                "BYTES": 32,
                "WIDE": False,
            },
        ),
    }
    sizes_found: dict[str, int] = {}
    for kernel, (signature, constants) in sources.items():
        for capability in (80, 89, 90, 100):
            if kernel is programs.scale_row and capability < 89:
                continue  # no float8 there
            source = make_source(
                kernel, signature | dict.fromkeys(constants, "constexpr"), constants
            )
            made = compile(source, target=make_target("cuda", capability, 32))
            sizes_found[f"{kernel.fn.__name__}, {capability}"] = len(made.asm["cubin"])
    return sizes_found


if __name__ == "__main__":
    what = sys.argv[1]
    print(json.dumps(machine_code() if what == "compile" else errors(what)))
