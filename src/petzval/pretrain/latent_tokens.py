"""Pixels as the tokens that the denoiser learns, and files of them, one a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from petzval.models.latents import normalise, patchify
from petzval.models.vae import Autoencoder
from petzval.weights.writing import write_safetensors


@torch.no_grad()
def encode_pictures(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] → normalised tokens [B, S, C], float32, where they are.

    The posterior's mean, with the autoencoder's own token statistics.
    """
    bn = autoencoder.bn
    latents = autoencoder.encode(images.to(bn.running_mean.device))
    return normalise(patchify(latents), bn.running_mean, bn.running_var, bn.eps).float()


def read_tokens(file: Path, num_tokens: int) -> Tensor | None:
    """Tokens [S, C] of an earlier session; None where there are none, or a damaged file."""
    if not file.is_file():
        return None
    try:
        tokens = load_file(file).get("latents")
    except (OSError, SafetensorError):
        return None
    return tokens if tokens is not None and tokens.shape[0] == num_tokens else None


def write_tokens(file: Path, tokens: Tensor) -> None:
    """Keep tokens [S, C], whole or not at all."""
    write_safetensors(file, {"latents": tokens})
