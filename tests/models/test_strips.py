"""A picture decoded in strips is the picture decoded at once."""

from __future__ import annotations

import copy

import pytest
import torch

from petzval.kernels import dispatch
from petzval.models.dry_run import dry_run
from petzval.models.sizes import LENS_VAE
from petzval.models.strips import decode_in_strips
from petzval.models.vae import Autoencoder
from petzval.weights.manifest import build_on_meta


def _latents(autoencoder: Autoencoder, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    channels = autoencoder.config.latent_channels
    return torch.randn((1, channels, height, width), generator=generator)


@pytest.mark.parametrize("rows", [2, 3, 8, 40, 10_000])
@torch.no_grad()
def test_strips_of_any_height_give_the_whole_picture(autoencoder: Autoencoder, rows: int) -> None:
    latents = _latents(autoencoder, 10, 6)
    whole = autoencoder.decode(latents)
    strips = decode_in_strips(autoencoder, latents, rows=rows)
    assert strips.shape == whole.shape
    assert (strips - whole).abs().max() <= 2e-6 * whole.abs().max()


@torch.no_grad()
def test_there_is_no_seam(autoencoder: Autoencoder) -> None:
    """The error beside a strip's edge is that of everywhere: rounding, and nothing else."""
    latents = _latents(autoencoder, 16, 16)
    error = (decode_in_strips(autoencoder, latents, rows=8) - autoencoder.decode(latents)).abs()
    by_row = error.amax(dim=(0, 1, 3)).unflatten(0, (-1, 8))
    edges, inside = by_row[:, [0, 7]], by_row[:, 1:7]
    assert edges.max() <= 3 * inside.max() < 1e-5


@torch.no_grad()
def test_statistics_of_a_strip_alone_would_show(autoencoder: Autoencoder) -> None:
    """The guard of the tests above: decoding halves by themselves is far from the whole."""
    latents = _latents(autoencoder, 16, 8)
    halves = torch.cat([autoencoder.decode(part) for part in latents.chunk(2, dim=2)], dim=2)
    assert (halves - autoencoder.decode(latents)).abs().max() > 1e-2


@torch.no_grad()
def test_several_pictures_and_half_precision(autoencoder: Autoencoder) -> None:
    latents = torch.cat([_latents(autoencoder, 8, 8), -_latents(autoencoder, 8, 8)])
    exact = autoencoder.decode(latents)
    low = copy.deepcopy(autoencoder).bfloat16()  # back in float32 it would not be what it was
    whole = low.decode(latents.bfloat16()).float()
    strips = decode_in_strips(low, latents.bfloat16(), rows=16).float()
    # Statistics in float32: the strips are no further from the exact picture than the whole is.
    assert (strips - exact).square().mean() <= 1.2 * (whole - exact).square().mean()


@torch.no_grad()
def test_strips_of_either_arithmetic_are_the_whole_picture_of_the_other(
    autoencoder: Autoencoder,
) -> None:
    """The doubling convolutions are collapsed where it is faster; no seam, no other picture."""
    latents = _latents(autoencoder, 8, 8)
    whole, strips = autoencoder.decode(latents), decode_in_strips(autoencoder, latents, rows=8)
    with dispatch.reference():
        slow = autoencoder.decode(latents)
        slow_strips = decode_in_strips(autoencoder, latents, rows=8)
    for picture in (strips, slow, slow_strips):
        assert (picture - whole).abs().max() < 1e-5


def test_a_strip_needs_rows(autoencoder: Autoencoder) -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        decode_in_strips(autoencoder, _latents(autoencoder, 4, 4), rows=1)


def test_a_megapixel_takes_two_thirds_of_the_memory() -> None:
    vae = build_on_meta(LENS_VAE).bfloat16()
    assert isinstance(vae, Autoencoder)

    def latents() -> torch.Tensor:
        return torch.empty(1, 32, 128, 128, dtype=torch.bfloat16, device="meta")

    whole = dry_run(lambda: vae.decode(latents()))
    strips = dry_run(lambda: decode_in_strips(vae, latents()))
    with dispatch.reference():
        plain = dry_run(lambda: vae.decode(latents())).flops
    assert plain == pytest.approx(10.4747e12, rel=1e-5)  # as counted by hand
    doubled = ((512, 128), (512, 256), (256, 512))  # channels, and the side before it is doubled
    collapsed = sum(2 * c**2 * (16 * (side + 1) ** 2 - 36 * side**2) for c, side in doubled)
    assert whole.flops == plain + collapsed < 0.86 * plain
    # 256 channels and 128, both of a whole megapixel, and a strip; never the second half's result.
    assert strips.peak_bytes < 2**20 * (256 + 128) * 2 + 200 * 2**20
    assert strips.peak_bytes < 0.65 * whole.peak_bytes
