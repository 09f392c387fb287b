"""The autoencoder and the way from latents to tokens and back."""

from __future__ import annotations

import pytest
import torch

from petzval.errors import ConfigError
from petzval.kernels import dispatch
from petzval.models.latents import denormalise, normalise, patchify, unpatchify
from petzval.models.vae import Autoencoder, AutoencoderConfig
from tests.support import golden_tensors

IMAGE_LIMIT = 2e-5


@pytest.mark.parametrize("case", ["square", "tall", "wide"])
@pytest.mark.parametrize("arithmetic", ["fast", "reference"])
def test_decode(autoencoder: Autoencoder, case: str, arithmetic: str) -> None:
    stored = golden_tensors("vae.safetensors")
    height, width = stored[f"{case}.hw"].tolist()
    statistics = autoencoder.bn
    tokens = denormalise(
        stored[f"{case}.tokens"], statistics.running_mean, statistics.running_var, statistics.eps
    )
    latents = unpatchify(tokens, (height, width))
    assert (latents - stored[f"{case}.latent_denorm"]).abs().max() <= 2e-6
    if arithmetic == "reference":
        with dispatch.reference():
            image = autoencoder.decode(latents)
    else:
        image = autoencoder.decode(latents)
    assert (image - stored[f"{case}.image"]).abs().max() <= IMAGE_LIMIT
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1)
    difference = pixels.int() - stored[f"{case}.image_u8"].int()
    assert difference.abs().max() <= 1


def test_encode(autoencoder: Autoencoder) -> None:
    stored = golden_tensors("vae.safetensors")
    mean = autoencoder.encode(stored["encode.image"])
    assert (mean - stored["encode.mode"]).abs().max() <= IMAGE_LIMIT
    statistics = autoencoder.bn
    tokens = normalise(
        patchify(mean), statistics.running_mean, statistics.running_var, statistics.eps
    )
    assert (tokens - stored["encode.tokens"]).abs().max() <= IMAGE_LIMIT


def test_token_channel_order() -> None:
    latents = torch.zeros(1, 3, 4, 6)
    latents[0, 2, 2 * 1 + 1, 2 * 2 + 0] = 1.0
    tokens = patchify(latents)
    assert tokens[0, 1 * 3 + 2, 4 * 2 + 2 * 1 + 0] == 1.0
    assert tokens.sum() == 1.0
    assert torch.equal(unpatchify(tokens, (2, 3)), latents)
    with pytest.raises(ValueError, match="even"):
        patchify(torch.zeros(1, 3, 3, 4))


def test_normalise_is_inverted() -> None:
    tokens, mean, variance = torch.randn(2, 5, 8), torch.randn(8), torch.rand(8) + 0.1
    back = denormalise(normalise(tokens, mean, variance, 1e-4), mean, variance, 1e-4)
    assert torch.allclose(back, tokens, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_out_channels": (16, 16, 32)}, "four"),
        ({"block_out_channels": (16, 16, 32, 33), "norm_num_groups": 8}, "multiple"),
        ({"block_out_channels": (32, 32, 32, 32), "patch_size": (1, 1)}, "patch_size"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderConfig(**values)  # pyright: ignore[reportArgumentType]
