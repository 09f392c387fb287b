"""Where the numerics modes differ: noise, rounded noise levels, statistics; and pixels.

`inference.parity` has the table of who does what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from petzval.errors import NumericsError, RequestError
from petzval.flow.noise import SharedNoise, initial_noise
from petzval.flow.sampler import Step
from petzval.inference.parity import Parity
from petzval.inference.plan import GenerationPlan, PlannedImage
from petzval.models.latents import denormalise
from petzval.models.vae import TokenStatistics
from petzval.shapes import Images, LatentTokens
from petzval.weights.checkpoint import Checkpoint

NOISE_LIMIT = 1 << 32
"""Numbers that one seed may draw for the pictures that share it; half a minute of one core."""


class NoiseSource:
    """Each picture's own noise; the same whatever else is in the batch.

    Args:
        grid: (height, width) in tokens.
        channels: of a token.
        parity: whose noise.
        dtype: the network's; only microsoft mode draws in it.
    """

    def __init__(
        self, grid: tuple[int, int], channels: int, parity: Parity, dtype: torch.dtype
    ) -> None:
        self._grid = grid
        self._channels = channels
        self._parity = parity
        self._dtype = dtype
        self._shared: dict[int, SharedNoise] = {}

    def rows(self, images: Sequence[PlannedImage]) -> LatentTokens:
        """One row a picture, float32 on the CPU.

        Raises:
            RequestError: as `check`.
        """
        self.check(images)
        return torch.cat([self._row(image) for image in images])

    def check(self, images: Sequence[PlannedImage]) -> None:
        """Refuse what a forged recipe could ask for: a row behind hours of others.

        Raises:
            RequestError: a picture's row lies behind more than `NOISE_LIMIT` numbers.
        """
        if not self._parity.batch_noise:
            return
        height, width = self._grid
        last = max(image.noise_row for image in images)
        if (last + 1) * height * width * self._channels > NOISE_LIMIT:
            most = NOISE_LIMIT // (height * width * self._channels)
            raise RequestError(
                f"noise row {last:,} of one seed lies beyond what is drawn for a picture: at this "
                f"size the limit is {most:,} rows",
                "ask for fewer pictures at once, or give each its own seed",
            )

    def _row(self, image: PlannedImage) -> LatentTokens:
        if not self._parity.batch_noise:
            return initial_noise([image.seed], self._grid, self._channels, mode=self._parity.name)
        if image.seed not in self._shared:
            self._shared[image.seed] = SharedNoise(
                image.seed, self._grid, self._channels, self._dtype
            )
        return self._shared[image.seed].row(image.noise_row)


Noise: TypeAlias = NoiseSource | LatentTokens
"""Drawn from seeds, or given: [pictures, tokens, channels]."""


def choose_noise(
    given: LatentTokens | None, plan: GenerationPlan, channels: int, dtype: torch.dtype
) -> Noise:
    """The noise that was given, or else that of a plan's seeds.

    Raises:
        RequestError: it is of another shape; or as `NoiseSource.check`.
    """
    height, width = plan.resolution.grid
    source = NoiseSource((height, width), channels, plan.parity, dtype)
    source.check(plan.images)
    if given is None:
        return source
    expected = [len(plan.images), height * width, channels]
    if list(given.shape) != expected:
        raise RequestError(
            f"noise of shape {list(given.shape)}, expected {expected}: pictures, tokens, channels"
        )
    return given


def noise_of(images: Sequence[PlannedImage], noise: Noise) -> Tensor:
    """The rows of some pictures, drawn or given."""
    if isinstance(noise, NoiseSource):
        return noise.rows(images)
    return noise[[image.index for image in images]]


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


@runtime_checkable
class OfCheckpoint(Protocol):
    """Whatever knows which files the networks came from."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Open."""
        ...


def check_finite(
    values: Tensor, what: str, dtype: torch.dtype, weights: OfCheckpoint | None = None
) -> None:
    """Stop with a readable message in place of a black picture.

    Args:
        values: all of them must be finite.
        what: they are.
        dtype: of the arithmetic.
        weights: whose may be damaged; its files are named then.

    Raises:
        NumericsError: naming `what`, when a number is NaN or infinite.
    """
    if bool(torch.isfinite(values).all()):
        return
    first = "lower the guidance" if dtype == torch.float32 else "use --dtype float32"
    places = "the model's folder" if weights is None else " and ".join(weights.checkpoint.places)
    raise NumericsError(
        f"{what}: a number is not finite any more",
        f"{first}; or the weights are damaged: run `petzval verify` on {places}",
    )


def check_features(
    features: Tensor, dtype: torch.dtype, weights: OfCheckpoint | None = None
) -> None:
    """The same for what the text encoder gives: its own files are named.

    Raises:
        NumericsError: a number is NaN or infinite.
    """
    if bool(torch.isfinite(features).all()):
        return
    of, where = "", "the model's folder"
    if weights is not None:
        of = f" of the text encoder in {weights.checkpoint.encoder_place}"
        where = " and ".join(weights.checkpoint.places)
    first = "" if dtype == torch.float32 else "use --dtype float32; or "
    raise NumericsError(
        f"text features{of}: a number is not finite any more",
        f"{first}the weights are damaged: run `petzval verify` on {where}",
    )


def check_step(
    step: Step,
    images: Sequence[PlannedImage],
    dtype: torch.dtype,
    weights: OfCheckpoint | None = None,
) -> None:
    """Stop where a number is not finite any more, in place of a black picture.

    Raises:
        NumericsError: naming pictures and step.
    """
    numbers = " and ".join(str(image.index + 1) for image in images)
    where = f"picture {numbers}, step {step.index + 1} of {step.num_steps}"
    check_finite(step.tokens, where, dtype, weights)
