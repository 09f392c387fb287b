"""Where the numerics modes differ: noise, rounded noise levels, statistics; and pixels.

`inference.parity` has the table of who does what.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from petzval.errors import NumericsError
from petzval.flow.noise import initial_noise
from petzval.inference.parity import Parity
from petzval.inference.plan import PlannedImage
from petzval.models.latents import denormalise
from petzval.models.vae import TokenStatistics
from petzval.shapes import Images, LatentTokens


def noise_for(
    images: Sequence[PlannedImage],
    grid: tuple[int, int],
    channels: int,
    parity: Parity,
    dtype: torch.dtype,
) -> LatentTokens:
    """Each picture's own noise, float32 on the CPU; the same whatever else is in the batch.

    A picture that takes row k of a shared draw draws the k + 1 first rows: rows do not depend on
    those behind them, since their size is a multiple of 16 numbers.
    """
    rows: list[Tensor] = []
    for image in images:
        if parity.batch_noise:
            seeds = [image.seed] * (image.noise_row + 1)
            drawn = initial_noise(seeds, grid, channels, mode=parity.name, dtype=dtype)
        else:
            drawn = initial_noise([image.seed], grid, channels, mode=parity.name)
        rows.append(drawn[-1:])
    return torch.cat(rows)


def levels_seen(sigmas: Float[Tensor, " calls"], parity: Parity, dtype: torch.dtype) -> Tensor:
    """The noise levels as the network is told them, float32.

    Lens casts timestep = 1000 sigma to the network's dtype and divides there; ComfyUI casts sigma
    and multiplies there. In bfloat16 Turbo's second level of 0.96738 becomes 0.96875 or 0.968.
    """
    if parity.name == "microsoft":
        return ((1000 * sigmas).to(dtype) / 1000).float()
    if parity.name == "comfyui":
        return (sigmas.to(dtype) * 1000).float() / 1000
    return sigmas


def restore_statistics(
    tokens: LatentTokens, statistics: TokenStatistics, parity: Parity, dtype: torch.dtype
) -> LatentTokens:
    """Tokens of the denoiser → tokens of the autoencoder's latents, in the autoencoder's dtype."""
    mean, variance = statistics.running_mean, statistics.running_var
    if parity.state_in_network_dtype:
        deviation = (variance.to(dtype) + statistics.eps).sqrt()
        return tokens.to(dtype) * deviation + mean.to(dtype)
    return denormalise(tokens, mean, variance, statistics.eps).to(dtype)


def to_pixels(images: Images) -> UInt8[np.ndarray, "batch height width 3"]:
    """[-1, 1] → 0 … 255, clamped and truncated, as the published pictures were."""
    grey = (images.float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return grey.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    """Stop with a readable message in place of a black picture.

    Raises:
        NumericsError: naming `what`, when a number is NaN or infinite.
    """
    if bool(torch.isfinite(values).all()):
        return
    wider = dtype != torch.float32
    hint = "use --dtype float32" if wider else "lower the guidance; or the weights are damaged"
    raise NumericsError(f"{what}: a number is not finite any more", hint)
