"""Which directions of a latent token can be seen: the metric that the decoder puts on latents.

A change `d` of one token changes the decoded picture by `|J d|²`, J the decoder's Jacobian. For
random pixels w of unit variance, `E[(Jᵀ w)(Jᵀ w)ᵀ] = Jᵀ J`, so one backward pass gives a sample of
`G = Jᵀ J` for every token at once; the mean over tokens and pictures is what is used here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petzval.models.latents import denormalise, unpatchify
from petzval.models.vae import Autoencoder

_CHUNK = 16


def visibility_metric(
    autoencoder: Autoencoder, tokens: Tensor, grid: tuple[int, int], *, seed: int = 0
) -> Tensor:
    """Mean of J^T J over tokens, scaled to trace C.

    Args:
        autoencoder: whose decoder is seen through.
        tokens: [N, S, C] normalised latent tokens of clean pictures of one size.
        grid: its rows and columns of tokens, S in all.
        seed: of the random pixels.

    Returns:
        [C, C] float32 on the CPU, symmetric, positive semi-definite.
    """
    bn = autoencoder.bn
    device = bn.running_mean.device
    generator = torch.Generator().manual_seed(seed)
    width = tokens.shape[-1]
    metric = torch.zeros(width, width)
    for start in range(0, tokens.shape[0], _CHUNK):
        chunk = tokens[start : start + _CHUNK].float().to(device).requires_grad_(True)
        latents = unpatchify(denormalise(chunk, bn.running_mean, bn.running_var, bn.eps), grid)
        pictures = autoencoder.decode(latents)
        pixels = torch.randn(pictures.shape, generator=generator).to(device)
        (seen,) = torch.autograd.grad((pictures * pixels).sum(), chunk)
        seen = seen.flatten(0, 1)
        metric += (seen.T @ seen).cpu()
    return metric * (width / metric.trace())


def blend(metric: Tensor, share: float) -> Tensor:
    """(1 - share) identity + share metric, [C, C]."""
    return (1 - share) * torch.eye(metric.shape[0]) + share * metric
