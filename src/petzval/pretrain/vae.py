"""The autoencoder's objective: faithful pictures from latents that a denoiser can model.

Loss on random crops, mean over the batch:

    L1 at full, half and quarter resolution  +  L2  +  L1 of the picture's gradients
    + moments: the latents' mean is pulled to 0 and their variance to 1 in every channel

and the decoder sees latents with a little Gaussian noise, in proportion to each channel's spread:
directions that carry next to nothing are drowned, so the denoiser need not model them.
No adversary and no perceptual network: flat illustrations do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petzval.models.latents import patchify
from petzval.models.vae import Autoencoder
from petzval.pretrain.scenes import SceneSource, to_tensor
from petzval.resolution import PRESETS, Resolution
from petzval.training.objective import Loss

_NUM_SCENES = 10**8


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderObjectiveConfig:
    """Settings of the autoencoder's loss and crops.

    Attributes:
        bases: families of presets whose sizes the scenes are rendered at.
        crops: sides of the square crops, in pixels; a step has one of them.
        crop_shares: how often each is drawn. Small ones are many to a step and quick to learn from,
            large ones teach what happens away from the border.
        batch_pixels: pixels a step; the number of crops follows, so that steps cost alike.
        crops_per_scene: crops from one rendered scene.
        latent_noise: standard deviation of the decoder's noise, in those of each channel.
        gradient_weight, square_weight, moment_weight: of the loss terms beside L1.
    """

    bases: tuple[int, ...] = (128, 256)
    crops: tuple[int, ...] = (32, 64, 128)
    crop_shares: tuple[float, ...] = (0.5, 0.35, 0.15)
    batch_pixels: int = 32_768
    crops_per_scene: int = 2
    latent_noise: float = 0.05
    gradient_weight: float = 0.5
    square_weight: float = 1.0
    moment_weight: float = 0.01
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CropBatch:
    """Crops [B, 3, crop, crop] in [-1, 1] and the seed of the latent noise."""

    images: Tensor
    seed: int


class AutoencoderObjective:
    """Reconstruction of random crops of rendered scenes."""

    def __init__(
        self, model: Autoencoder, scenes: SceneSource, config: AutoencoderObjectiveConfig
    ) -> None:
        self.model = model
        self.scenes = scenes
        self.config = config
        self._sizes = [size for base in config.bases for size in PRESETS[base].values()]

    def batch(self, step: int) -> CropBatch:
        """Crops of one size from scenes drawn at random."""
        config = self.config
        rng = np.random.default_rng((config.seed, step))
        side = int(rng.choice(config.crops, p=np.array(config.crop_shares)))
        batch_size = max(1, config.batch_pixels // side**2)
        sizes = [size for size in self._sizes if min(size.height, size.width) >= side]
        crops: list[Tensor] = []
        while len(crops) < batch_size:
            size = sizes[int(rng.integers(len(sizes)))]
            pixels = self.scenes.pixels(int(rng.integers(_NUM_SCENES)), size)
            for _ in range(config.crops_per_scene):
                top = int(rng.integers(size.height - side + 1))
                left = int(rng.integers(size.width - side + 1))
                crops.append(to_tensor(pixels[top : top + side, left : left + side]))
        images = torch.stack(crops[:batch_size])
        return CropBatch(images=images, seed=int(rng.integers(2**31)))

    def loss(self, batch: CropBatch) -> Loss:
        """See the module's head; `psnr` is in decibels for a range of 2."""
        device = self.model.bn.running_mean.device
        images = batch.images.to(device)
        latents = self.model.encode(images).float()
        std = latents.std(dim=(0, 2, 3), keepdim=True)
        generator = torch.Generator().manual_seed(batch.seed)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy = latents + self.config.latent_noise * std.detach() * noise
        decoded = self.model.decode(noisy).float()
        absolute = multiscale_l1(decoded, images)
        square = F.mse_loss(decoded, images)
        gradient = gradient_l1(decoded, images)
        moments = latents.mean(dim=(0, 2, 3)).square().mean() + (std - 1).square().mean()
        config = self.config
        value = (
            absolute
            + config.square_weight * square
            + config.gradient_weight * gradient
            + config.moment_weight * moments
        )
        psnr = 10 * torch.log10(4 / square.detach().clamp_min(1e-10))
        return Loss(
            value=value,
            parts={"l1": absolute, "gradient": gradient, "moments": moments, "psnr": psnr},
            num_items=images.shape[0],
            num_tokens=images.shape[0] * (images.shape[2] // 16) * (images.shape[3] // 16),
        )


def multiscale_l1(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error, averaged over full, half and quarter resolution."""
    total = (decoded - images).abs().mean()
    for _ in range(2):
        decoded, images = F.avg_pool2d(decoded, 2), F.avg_pool2d(images, 2)
        total = total + (decoded - images).abs().mean()
    return total / 3


def gradient_l1(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of horizontal and vertical differences: sharp edges stay sharp."""
    error = decoded - images
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def initialise_autoencoder(model: Autoencoder) -> None:
    """He-scaled convolutions; the second one of each resnet starts small."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            scale = 0.1 if name.endswith("conv2") else 1.0
            nn.init.normal_(module.weight, std=scale * fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def fit_statistics(model: Autoencoder, images: Iterator[Tensor]) -> int:
    """Set `bn.running_mean` and `bn.running_var` to the exact moments of the pictures' tokens.

    Args:
        model: changed in place.
        images: batches [B, 3, height, width] in [-1, 1] of any sizes.

    Returns:
        The number of tokens.
    """
    channels = model.bn.running_mean.shape[0]
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    for batch in images:
        device = model.bn.running_mean.device
        with torch.autocast(device.type, dtype=torch.bfloat16):
            latents = model.encode(batch.to(device)).float()
        tokens = patchify(latents).flatten(0, 1).double().cpu()
        total += tokens.sum(0)
        squares += tokens.square().sum(0)
        count += tokens.shape[0]
    mean = total / count
    model.bn.running_mean.copy_(mean)
    model.bn.running_var.copy_((squares / count - mean.square()).clamp_min(0))
    model.bn.num_batches_tracked.fill_(count)
    return count


def statistics_images(
    scenes: SceneSource, bases: tuple[int, ...], num_scenes: int, first: int
) -> Iterator[Tensor]:
    """Whole rendered scenes in batches of one size, over all sizes of the families."""
    sizes: list[Resolution] = [size for base in bases for size in PRESETS[base].values()]
    for number, size in enumerate(sizes):
        indices = range(first + number, first + num_scenes, len(sizes))
        for start in range(0, len(indices), 8):
            chunk = indices[start : start + 8]
            yield torch.stack([to_tensor(scenes.pixels(index, size)) for index in chunk])
