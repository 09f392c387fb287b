"""The axis vocabulary: one name for each kind of tensor that crosses a room's border.

Axes: `batch` pictures; `image_tokens` = grid height x grid width, row-major; `text_tokens` prompt
and suffix tokens after the template's prefix; `channels` of a token (4 x latent channels).
The names are checked at run time in tests and cost nothing in the product.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images: TypeAlias = Float[Tensor, "batch 3 height width"]
"""Pictures in [-1, 1]."""

Latents: TypeAlias = Float[Tensor, "batch latent_channels latent_height latent_width"]
"""Autoencoder latents, one eighth of the picture's sides, not normalised."""

LatentTokens: TypeAlias = Float[Tensor, "batch image_tokens channels"]
"""2 x 2 patches of latents as tokens; normalised wherever the denoiser sees them."""

TextFeatures: TypeAlias = Float[Tensor, "batch text_tokens encoder_width"]
"""Hidden states of one selected language-model layer."""

TextTokens: TypeAlias = Float[Tensor, "batch text_tokens width"]
"""Text stream of the denoiser (all selected layers, normalised, concatenated, projected)."""

TokenIds: TypeAlias = Int[Tensor, "batch tokens"]
TokenMask: TypeAlias = Bool[Tensor, "batch tokens"]
"""True where a token is real."""

Sigma: TypeAlias = Float[Tensor, " batch"]
"""Noise level per picture, 0 = data, 1 = pure noise."""

Sigmas: TypeAlias = Float[Tensor, " steps_and_zero"]
"""A descending schedule that ends in 0."""
