"""Small layers of the denoiser: norm weights, timestep embedding, gated feed-forward."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petzval.kernels import dispatch
from petzval.kernels.sequences import spread


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight; key `weight`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return dispatch.rms_norm(x, self.weight, self.eps)


def timestep_sinusoid(sigma: Tensor, width: int = 256) -> Tensor:
    """sigma [B] → float32 [B, width] = [cos a | sin a], a_j = 1000 sigma 10000^(-2j / width).

    The factor 1000 is applied to the product, as Lens' `Timesteps(scale=1000)` does.
    """
    half = width // 2
    exponents = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=sigma.device)
    angles = 1000.0 * (sigma.float()[:, None] * torch.exp(exponents / half)[None, :])
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimestepMLP(nn.Module):
    """Sinusoid → width; keys `linear_1`, `linear_2`."""

    def __init__(self, sinusoid_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(sinusoid_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid.to(self.linear_1.weight.dtype))))


class TimestepEmbedder(nn.Module):
    """sigma [B] → conditioning vector [B, width]; key `timestep_embedder`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepMLP(256, width)

    def forward(self, sigma: Tensor) -> Tensor:
        return self.timestep_embedder(timestep_sinusoid(sigma))


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), no bias. Hidden width int(width / 3 * 8), in floating point."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width / 3 * 8)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(dispatch.swiglu(self.w1(x), self.w3(x)))


def adaptive_layer_norm(
    x: Tensor, shift: Tensor, scale: Tensor, rows: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """LayerNorm without weights, then x (1 + scale) + shift: the denoiser's last norm.

    With `rows` [tokens] each token takes the shift and scale of the sample that it names.
    """
    normalised = F.layer_norm(x, (x.shape[-1],), eps=eps)
    return torch.addcmul(spread(shift, rows), normalised, 1 + spread(scale, rows))
