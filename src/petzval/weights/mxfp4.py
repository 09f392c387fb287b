"""MXFP4 experts of a whole text encoder: packed tensors ⇄ de-quantised ones, key by key.

The block format itself is `kernels.mxfp4`. In files, blocks lie [E, out, in / 32, 16] and scales
[E, out, in / 32]; de-quantised experts lie [E, in, out].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from petzval.kernels.mxfp4 import NAN_SCALE, decode_mxfp4, encode_mxfp4

__all__ = [
    "NAN_SCALE",
    "decode_experts",
    "decode_mxfp4",
    "decode_state",
    "encode_experts",
    "encode_mxfp4",
    "encode_state",
]

_MATRICES = ("gate_up_proj", "down_proj")


def decode_experts(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """blocks [E, out, in / 32, 16] and scales [E, out, in / 32] → [E, in, out].

    One expert is decoded at a time, so that beside the result only one expert's worth is held.
    """
    num_experts, num_out, num_blocks = scales.shape
    decoded = torch.empty(num_experts, num_blocks * 32, num_out, dtype=dtype, device=blocks.device)
    for expert in range(num_experts):
        decoded[expert] = decode_mxfp4(blocks[expert], scales[expert], dtype).T
    return decoded


def encode_experts(values: Tensor) -> tuple[Tensor, Tensor]:
    """[E, in, out] → (blocks, scales); the inverse of `decode_experts` on what it gives."""
    encoded = [encode_mxfp4(expert.T) for expert in values]
    return torch.stack([pair[0] for pair in encoded]), torch.stack([pair[1] for pair in encoded])


def decode_state(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A text encoder's tensors with packed experts replaced by matrices; the others are kept."""
    decoded: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith("_blocks"):
            name = key.removesuffix("_blocks")
            decoded[name] = decode_experts(tensor, state[f"{name}_scales"], dtype)
        elif not key.endswith("_scales"):
            decoded[key] = tensor
    return decoded


def encode_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors with expert matrices packed; lossy unless they came from MXFP4."""
    encoded: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith(tuple(f"experts.{name}" for name in _MATRICES)):
            encoded[f"{key}_blocks"], encoded[f"{key}_scales"] = encode_experts(tensor)
        else:
            encoded[key] = tensor
    return encoded
