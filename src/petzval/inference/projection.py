"""From latents straight to small colours: a linear stand-in for the autoencoder's decoder.

A 3 x 3 convolution gives each latent 4 x 4 pixels, half the picture's sides in all. It is fitted by
least squares to what one autoencoder's decoder makes of latents, so it belongs to that autoencoder
and is found by the fingerprint of its statistics: among those that ship inside, among those fitted
before on this machine, or else fitted now, in seconds. `python -m petzval.inference.projection`
writes the one that ships for `mini`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import petzval
from petzval.errors import RequestError
from petzval.inference.dead_leaves import dead_leaves
from petzval.inference.image import write_atomically
from petzval.inference.paths import user_path
from petzval.models.latents import denormalise, unpatchify
from petzval.models.vae import Autoencoder
from petzval.shapes import Images, Latents, LatentTokens

CACHE_VARIABLE = "PETZVAL_CACHE"
"""Environment variable that names the folder of what can always be made again."""

PIXELS_PER_LATENT = 4
_DECODED_PER_LATENT = 8
_KERNEL = 3
_RIDGE = 1e-3
"""Added to the normal equations' diagonal, as a part of its mean."""

_FIT_PICTURES, _FIT_SIDE = 8, 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LatentProjection:
    """The fitted map of one autoencoder.

    Attributes:
        weight: [3 x 16, latent channels, 3, 3].
        bias: [3 x 16].
        mean, variance: of the tokens' channels, as the autoencoder keeps them.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    eps: float

    def __call__(self, tokens: LatentTokens, grid: tuple[int, int]) -> Images:
        """Normalised tokens → pictures of half the sides, nominally in [-1, 1], not clamped."""
        latents = unpatchify(denormalise(tokens, self.mean, self.variance, self.eps), grid)
        padded = F.pad(latents, (_KERNEL // 2,) * 4, mode="replicate")
        return F.pixel_shuffle(F.conv2d(padded, self.weight, self.bias), PIXELS_PER_LATENT)

    def to(self, device: torch.device) -> LatentProjection:
        """The same on a device, in float32."""
        return LatentProjection(
            weight=self.weight.to(device, torch.float32),
            bias=self.bias.to(device, torch.float32),
            mean=self.mean.to(device, torch.float32),
            variance=self.variance.to(device, torch.float32),
            eps=self.eps,
        )

    def to_bytes(self) -> bytes:
        """A safetensors file of weight and bias, halved in precision; the rest is not ours."""
        tensors = {"weight": self.weight, "bias": self.bias}
        return save({name: each.cpu().half().contiguous() for name, each in tensors.items()})


def fingerprint(autoencoder: Autoencoder) -> str:
    """Sixteen hexadecimal digits that name an autoencoder, whatever dtype and device it is in."""
    hasher = hashlib.sha256()
    for statistic in (autoencoder.bn.running_mean, autoencoder.bn.running_var):
        hasher.update(statistic.float().cpu().numpy().tobytes())
    return hasher.hexdigest()[:16]


@torch.no_grad()
def fit(autoencoder: Autoencoder, *, seed: int = 0) -> LatentProjection:
    """Least squares between the latents of made-up pictures and what the decoder makes of them.

    Pictures are dead leaves (`dead_leaves`), so that nothing has to be at hand but the autoencoder.
    Costs one encoding and decoding of eight pictures of 256 x 256.
    """
    parameter = autoencoder.post_quant_conv.weight
    pictures = dead_leaves(_FIT_PICTURES, _FIT_SIDE, seed=seed).to(parameter)
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    for picture in pictures.split(1):
        latents = autoencoder.encode(picture)
        rows.append(_neighbourhoods(latents.float()))
        targets.append(_small_pixels(autoencoder.decode(latents).float().clamp(-1, 1)))
    # On the CPU first: MPS and many of Intel's cards have no float64.
    x, y = torch.cat(rows).cpu().double(), torch.cat(targets).cpu().double()
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    normal = x.T @ x
    normal += _RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype)
    solution = torch.linalg.solve(normal, x.T @ y).T.float()
    channels = autoencoder.config.latent_channels
    return _of(
        autoencoder, solution[:, :-1].reshape(-1, channels, _KERNEL, _KERNEL), solution[:, -1]
    )


def find_projection(autoencoder: Autoencoder) -> LatentProjection | None:
    """The projection of an autoencoder that ships inside, or that was kept from before.

    A file that is damaged or does not fit counts as absent.
    """
    name = f"{fingerprint(autoencoder)}.safetensors"
    found = (_read(folder / name, autoencoder) for folder in (_shipped(), _kept()))
    return next((each for each in found if each is not None), None)


def make_projection(autoencoder: Autoencoder) -> LatentProjection:
    """Fit the projection of an autoencoder and keep it.

    A folder that cannot be written is no reason to go without.
    """
    made = fit(autoencoder)
    with contextlib.suppress(RequestError):
        write_atomically(_kept() / f"{fingerprint(autoencoder)}.safetensors", made.to_bytes())
    return made.to(autoencoder.post_quant_conv.weight.device)


def _neighbourhoods(latents: Latents) -> Tensor:
    """[B, c, h, w] → [B h w, 9 c]: each latent and the eight around it, the edge repeated."""
    padded = F.pad(latents, (_KERNEL // 2,) * 4, mode="replicate")
    return F.unfold(padded, _KERNEL).transpose(1, 2).flatten(0, 1)


def _small_pixels(images: Images) -> Tensor:
    """[B, 3, 8h, 8w] → [B h w, 3 x 16]: what each latent's square looks like at half the size."""
    small = F.avg_pool2d(images, _DECODED_PER_LATENT // PIXELS_PER_LATENT)
    return F.pixel_unshuffle(small, PIXELS_PER_LATENT).flatten(2).transpose(1, 2).flatten(0, 1)


def _of(autoencoder: Autoencoder, weight: Tensor, bias: Tensor) -> LatentProjection:
    statistics = autoencoder.bn
    return LatentProjection(
        weight=weight,
        bias=bias,
        mean=statistics.running_mean,
        variance=statistics.running_var,
        eps=statistics.eps,
    )


def _shipped() -> Path:
    return Path(petzval.__file__).parent / "assets" / "previews"


def _kept() -> Path:
    cache = os.environ.get(CACHE_VARIABLE)
    if cache:
        return user_path(cache) / "previews"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(home) / "petzval" / "previews"


def _read(path: Path, autoencoder: Autoencoder) -> LatentProjection | None:
    try:
        tensors = load(path.read_bytes())
        weight, bias = tensors["weight"], tensors["bias"]
    except (OSError, SafetensorError, KeyError):
        return None
    outputs = 3 * PIXELS_PER_LATENT**2
    expected = (outputs, autoencoder.config.latent_channels, _KERNEL, _KERNEL)
    if tuple(weight.shape) != expected or tuple(bias.shape) != (outputs,):
        return None
    device = autoencoder.post_quant_conv.weight.device
    return _of(autoencoder, weight, bias).to(device)


def _main() -> None:
    """Fit the projection of a checkpoint and write it where those that ship inside lie."""
    from petzval.inference.variants import locate
    from petzval.weights.checkpoint import Checkpoint

    parser = argparse.ArgumentParser(description=_main.__doc__)
    parser.add_argument("--model", default="mini", help="name, or folder of a checkpoint")
    autoencoder = Checkpoint.open(locate(parser.parse_args().model).folder).load_vae(torch.float32)
    path = _shipped() / f"{fingerprint(autoencoder)}.safetensors"
    write_atomically(path, fit(autoencoder).to_bytes())
    print(path)


if __name__ == "__main__":
    _main()
