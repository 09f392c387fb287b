"""The FLUX.2 autoencoder (`AutoencoderKLFlux2`): pictures ⇄ latents at one eighth of the sides.

Keys are as published. Order: configuration, pieces, encoder, decoder, the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petzval.config import check_ranges, setting
from petzval.errors import ConfigError
from petzval.kernels import dispatch
from petzval.shapes import Images, Latents

GROUP_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """`vae/config.json`: the fields that decide the arithmetic.

    Attributes:
        block_out_channels: widths from full resolution down; each step but the last halves sides.
        batch_norm_eps: added to the token statistics' variance.

    Raises:
        ConfigError: a value out of range, or widths that the form of the network does not allow.
    """

    block_out_channels: tuple[int, ...] = setting(maximum=65_536)
    latent_channels: int = setting(32, minimum=1, maximum=4096)
    layers_per_block: int = setting(2, minimum=1, maximum=64)
    norm_num_groups: int = setting(32, minimum=1, maximum=65_536)
    batch_norm_eps: float = setting(1e-4, minimum=0.0)
    in_channels: int = setting(3, minimum=1, maximum=4096)
    out_channels: int = setting(3, minimum=1, maximum=4096)
    patch_size: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        check_ranges(self, where="vae")
        if len(self.block_out_channels) != 4:
            raise ConfigError(
                f"vae: four block_out_channels give the factor of 8, got {self.block_out_channels}"
            )
        for width in self.block_out_channels:
            if width < 1 or width % self.norm_num_groups:
                raise ConfigError(
                    f"vae: width {width} is not a multiple of norm_num_groups "
                    f"{self.norm_num_groups}"
                )
        if self.patch_size != (2, 2):
            raise ConfigError(f"vae: patch_size must be (2, 2), got {self.patch_size}")


class ResnetBlock(nn.Module):
    """x (or its 1 x 1 projection) + conv2(silu(norm2(conv1(silu(norm1(x))))))."""

    def __init__(self, num_in: int, num_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, num_in, eps=GROUP_NORM_EPS)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, num_out, eps=GROUP_NORM_EPS)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1)
        if num_in != num_out:
            self.conv_shortcut = nn.Conv2d(num_in, num_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        shortcut = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        return shortcut + hidden


class PixelAttention(nn.Module):
    """Single-head attention over all positions, added to its input."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=GROUP_NORM_EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.group_norm(x).flatten(2).transpose(1, 2)
        query, key, value = (
            layer(hidden)[:, :, None] for layer in (self.to_q, self.to_k, self.to_v)
        )
        attended = self.to_out[0](dispatch.attention(query, key, value)[:, :, 0])
        return x + attended.transpose(1, 2).unflatten(2, x.shape[-2:])


class Downsample(nn.Module):
    """Stride-2 convolution with padding on the right and the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3 x 3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.conv.bias is not None
        return dispatch.upsample_convolution(x, self.conv.weight, self.conv.bias)


class DownBlock(nn.Module):
    """Resnets, then a halving where there is a next level."""

    def __init__(self, num_in: int, num_out: int, depth: int, groups: int, halve: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(num_in if i == 0 else num_out, num_out, groups) for i in range(depth)]
        )
        if halve:
            self.downsamplers = nn.ModuleList([Downsample(num_out)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return self.downsamplers[0](x) if hasattr(self, "downsamplers") else x


class UpBlock(nn.Module):
    """Resnets, then a doubling where there is a next level."""

    def __init__(self, num_in: int, num_out: int, depth: int, groups: int, double: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(num_in if i == 0 else num_out, num_out, groups) for i in range(depth)]
        )
        if double:
            self.upsamplers = nn.ModuleList([Upsample(num_out)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class MidBlock(nn.Module):
    """Resnet, attention, resnet at the lowest resolution."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([PixelAttention(width, groups)])
        self.resnets = nn.ModuleList([ResnetBlock(width, width, groups) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Picture → 2 x latent channels (mean and log-variance)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(widths[max(i - 1, 0)], width, config.layers_per_block, groups, i + 1 < 4)
                for i, width in enumerate(widths)
            ]
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents → picture."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            [
                UpBlock(
                    widths[max(i - 1, 0)], width, config.layers_per_block + 1, groups, i + 1 < 4
                )
                for i, width in enumerate(widths)
            ]
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class TokenStatistics(nn.Module):
    """Running mean and variance of the 4 x latent channels of a token; keys `bn.*`."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))


class Autoencoder(nn.Module):
    """Encoder, decoder and the token statistics that normalise what the denoiser sees."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.bn = TokenStatistics(4 * channels, config.batch_norm_eps)

    def encode(self, images: Images) -> Latents:
        """Mean of the posterior (its mode) for pictures in [-1, 1]; sides multiples of 8."""
        return self.posterior(images)[0]

    def posterior(self, images: Images) -> tuple[Latents, Latents]:
        """Mean and log-variance of the latents."""
        mean, log_variance = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latents: Latents) -> Images:
        """Latents (not normalised) → pictures, nominally in [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents))
