"""Latent grid ⇄ denoiser tokens: 2 x 2 patches and the autoencoder's batch-norm statistics.

Token channel 4 c + 2 p + q holds latent channel c at row p, column q of the patch; the statistics
use the same order (Lens: `bn.running_mean`, `bn.running_var`, eps 1e-4).
"""

from __future__ import annotations

from torch import Tensor

from petzval.shapes import Latents, LatentTokens


def patchify(latents: Latents) -> LatentTokens:
    """[B, c, 2h, 2w] → [B, h w, 4c].

    Raises:
        ValueError: a side is odd.
    """
    if latents.shape[-2] % 2 or latents.shape[-1] % 2:
        raise ValueError(f"latent sides must be even, got {tuple(latents.shape[-2:])}")
    patches: Tensor = latents.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # b c h p w q
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: LatentTokens, grid: tuple[int, int]) -> Latents:
    """[B, h w, 4c] → [B, c, 2h, 2w], the inverse of `patchify`."""
    patches: Tensor = tokens.unflatten(1, grid).unflatten(-1, (-1, 2, 2))  # b h w c p q
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def normalise(tokens: LatentTokens, mean: Tensor, variance: Tensor, eps: float) -> LatentTokens:
    """(tokens - mean) / sqrt(variance + eps), per channel, in float32."""
    return (tokens.float() - mean.float()) * (variance.float() + eps).rsqrt()


def denormalise(tokens: LatentTokens, mean: Tensor, variance: Tensor, eps: float) -> LatentTokens:
    """tokens * sqrt(variance + eps) + mean, per channel, in float32."""
    return tokens.float() * (variance.float() + eps).sqrt() + mean.float()
