"""The kernels of `programs` with the signatures of their twins in `kernels.reference`.

Inference only: nothing here has a backward pass. Inputs are on one CUDA device (or, under Triton's
interpreter, on the CPU).
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingModuleSource]
from torch import Tensor

from petzval.kernels.sequences import FusedStream
from petzval.kernels.triton import programs
from petzval.kernels.triton.source import launch

_FLOAT8_MAX = 448.0
_FLAT_BLOCK = 1024


def fits(head_width: int) -> bool:
    """Whether the kernels know heads of this width: a power of two, so that pairs stay whole."""
    return head_width >= 2 and head_width & (head_width - 1) == 0


def joint_qkv(
    image: FusedStream,
    text: FusedStream | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    *,
    text_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.reference.joint_qkv`: one kernel a stream, written into the joint buffers."""
    batch, num_image, columns = image.fused.shape
    head_width = image.query_weight.shape[0]
    num_heads = columns // (3 * head_width)
    num_keys = num_image + (0 if text is None else text.fused.shape[1])
    num_queries = num_keys if text_queries else num_image
    query = image.fused.new_empty(batch, num_queries, num_heads, head_width)
    key = image.fused.new_empty(batch, num_keys, num_heads, head_width)
    value = torch.empty_like(key)
    for stream, start in ((image, 0), (text, num_image)):
        if stream is None:
            continue
        num_tokens = stream.fused.shape[1]
        first = 0 if start < num_queries else 1
        launch(
            programs.split_norm_rotate,
            (num_tokens, batch, 3 - first),
            query,
            stream.fused.contiguous(),
            stream.query_weight,
            stream.key_weight,
            cos.contiguous(),
            sin.contiguous(),
            query,
            key,
            value,
            num_tokens,
            start,
            num_queries,
            num_keys,
            eps,
            HEADS=num_heads,
            HALF=head_width // 2,
            HEAD_BLOCK=triton.next_power_of_2(num_heads),
            FIRST=first,
        )
    return query, key, value


def rms_norm_modulate(
    x: Tensor,
    weight: Tensor,
    eps: float,
    shift: Tensor,
    scale: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """See `kernels.reference.rms_norm_modulate`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    batch, num_tokens, width = x.shape
    shift, scale = _last_dense(shift), _last_dense(scale)
    launch(
        programs.norm_modulate,
        (num_tokens, batch),
        x,
        x,
        weight,
        shift,
        scale,
        x if rows is None else rows,
        out,
        num_tokens,
        shift.stride(0),
        scale.stride(0),
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        HAS_ROWS=rows is not None,
        ONE=shift.shape[0] == 1,
    )
    return out


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
    """See `kernels.reference.gated_residual`."""
    x, y, gate = x.contiguous(), y.contiguous(), _last_dense(gate)
    out = torch.empty_like(x)
    batch, num_tokens, width = x.shape
    launch(
        programs.add_gated,
        (num_tokens, batch),
        x,
        x,
        gate,
        y,
        x if rows is None else rows,
        out,
        num_tokens,
        gate.stride(0),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        HAS_ROWS=rows is not None,
        ONE=gate.shape[0] == 1,
    )
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `kernels.reference.swiglu`."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    count = gate.numel()
    grid = (triton.cdiv(count, _FLAT_BLOCK),)
    launch(programs.silu_times, grid, gate, gate, up, out, count, BLOCK=_FLAT_BLOCK)
    return out


def encode_float8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.reference.encode_float8_rows`."""
    x = x.contiguous()
    codes = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(x.shape[0], 1, dtype=torch.float32)
    launch(
        programs.scale_row,
        (x.shape[0],),
        x,
        x,
        codes,
        scales,
        WIDTH=x.shape[1],
        BLOCK=triton.next_power_of_2(x.shape[1]),
        LARGEST=_FLOAT8_MAX,
    )
    return codes, scales


def _last_dense(x: Tensor) -> Tensor:
    """Rows may lie apart, as chunks of a modulation do; values within a row may not."""
    return x if x.stride(-1) == 1 else x.contiguous()
