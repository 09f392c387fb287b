"""Attention within each sample of a packed row: what runs on which device, and the fused kernels.

On CUDA in half precision `varlen_attn` (flash attention), otherwise `flex_attention` with a mask of
samples. Neither can be trained through on a CPU: `varlen_attn` has no CPU kernel and
`flex_attention` no backward pass there, so a CPU takes the samples one by one (`kernels.fast`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from petzval.kernels import backends
from petzval.kernels.sequences import Sequences

Way: TypeAlias = Literal["varlen_attn", "flex_attention", "one sample at a time"]

_HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None
FLASH_CAPABILITY = (8, 0)
"""Flash attention needs Ampere or newer."""


def choose(device: torch.device, dtype: torch.dtype) -> tuple[Way, str]:
    """The way that runs for values of this type on this device, and why."""
    if device.type != "cuda":
        return "one sample at a time", "the packed kernels cannot be trained through off CUDA"
    missing = backends.compiler_lacks(device)
    other: Way = "flex_attention" if missing is None else "one sample at a time"
    reason = "" if missing is None else f", and {missing}"
    if dtype not in (torch.float16, torch.bfloat16):
        return other, f"flash attention has no {dtype}{reason}"
    if not _HAS_VARLEN:
        return other, f"this build of torch has no varlen_attn{reason}"
    if torch.version.hip is not None:
        return other, f"varlen_attn was never tried on ROCm{reason}"
    if torch.cuda.get_device_capability(device) < FLASH_CAPABILITY:
        return other, f"flash attention needs compute capability 8.0{reason}"
    return "varlen_attn", "flash attention on samples of any length, without padding or mask"


def flash(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    """`varlen_attn`; see `kernels.reference.packed_attention`. Float16 or bfloat16 on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query.to(value.dtype),
        key.to(value.dtype),
        value,
        sequences.query_offsets,
        sequences.key_offsets,
        sequences.longest_query,
        sequences.longest_key,
    )
    return cast("Tensor", out)


def flex(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    """`flex_attention` in blocks that a sample touches; see `kernels.reference.packed_attention`.

    Compiled on CUDA. On a CPU it runs unfused, forward only: good for a comparison.
    """
    run: Callable[..., Any] = _compiled_flex() if query.is_cuda else flex_attention
    heads_first = [x.to(value.dtype).transpose(0, 1)[None] for x in (query, key, value)]
    out = run(*heads_first, block_mask=sequences.block_mask)
    return cast("Tensor", out)[0].transpose(0, 1)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)
