"""Classifier-free guidance with the conditional prediction's norm kept per token (Lens)."""

from __future__ import annotations

import torch
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """combined = u + scale (c - u), rescaled so that each token keeps |c| over its channels.

    Factor 1 where |combined| is 0; the divisor is at least 1e-12.

    Args:
        conditional: velocity c [..., tokens, channels] with the prompt's text.
        unconditional: velocity u of the same shape, without it or with the negative prompt's.
        scale: 0 and more; 1 gives c up to rounding, so callers skip the second branch there.

    Returns:
        The velocity to follow, of the same shape.
    """
    combined = unconditional + scale * (conditional - unconditional)
    kept: Tensor = torch.linalg.vector_norm(conditional, dim=-1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(combined, dim=-1, keepdim=True)
    factor = torch.where(norm > 0, kept / norm.clamp_min(1e-12), torch.ones_like(norm))
    return combined * factor
