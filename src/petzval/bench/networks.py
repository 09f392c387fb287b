"""Random networks of a checkpoint's sizes, made where they run, and what they are fed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from petzval.bench.setting import Setting
from petzval.flow.noise import initial_noise
from petzval.models.gpt_oss import GptOssEncoder, PrefixCache
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.weights.manifest import build_on_meta

PREFIX_LENGTH = 97
"""Tokens of the template before a prompt."""

_GATES = 0.1
"""Modulations are drawn this much smaller, so that a block changes its stream as a learnt one does
and rounding does not grow from block to block."""

_SCALES = (118, 122)
"""MXFP4's exponents: such that the weights of an expert are near a hundredth."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """Networks and inputs of one setting.

    Attributes:
        ids: [batch, 97 + text tokens]; the first 97 are the same in all rows.
        prefix: keys and values of those.
        noise: [batch, image tokens, channels].
    """

    setting: Setting
    device: torch.device
    encoder: GptOssEncoder
    denoiser: MMDiT
    autoencoder: Autoencoder
    ids: Tensor
    prefix: PrefixCache
    noise: Tensor

    def features(self, states: list[Tensor]) -> list[Tensor]:
        """As many layers as the denoiser reads; of an encoder that is built in part, its last."""
        wanted = range(len(self.denoiser.config.selected_layer_index))
        return [states[min(index, len(states) - 1)] for index in wanted]


@torch.no_grad()
def make_scene(setting: Setting, device: torch.device) -> Scene:
    """Build the networks of a setting with random weights on a device."""
    dtype: torch.dtype = getattr(torch, setting.dtype)
    sizes = setting.built()
    layers = setting.layers_read
    if setting.encoder_layers:
        layers = tuple(sorted({min(i, setting.encoder_layers - 1) for i in layers}))
    encoder = _made(build_on_meta(sizes.encoder, layers), dtype, device, seed=1)
    denoiser = _made(build_on_meta(sizes.denoiser), dtype, device, seed=2)
    autoencoder = _made(build_on_meta(sizes.autoencoder), dtype, device, seed=3)
    assert isinstance(encoder, GptOssEncoder)
    assert isinstance(denoiser, MMDiT)
    assert isinstance(autoencoder, Autoencoder)
    encoder.selected_layers = layers
    generator = torch.Generator("cpu").manual_seed(4)
    tokens = (setting.batch, PREFIX_LENGTH + setting.text_tokens)
    ids = torch.randint(0, sizes.encoder.vocab_size, tokens, generator=generator)
    ids[:, :PREFIX_LENGTH] = ids[:1, :PREFIX_LENGTH]
    ids = ids.to(device)
    seeds = list(range(setting.batch))
    return Scene(
        setting=setting,
        device=device,
        encoder=encoder,
        denoiser=denoiser,
        autoencoder=autoencoder,
        ids=ids,
        prefix=encoder.encode_prefix(ids[:1, :PREFIX_LENGTH]),
        noise=initial_noise(seeds, setting.grid, denoiser.config.in_channels).to(device),
    )


def _made(module: nn.Module, dtype: torch.dtype, device: torch.device, seed: int) -> nn.Module:
    """Numbers for a network on the meta device: drawn where they stay."""
    generator = torch.Generator(device).manual_seed(seed)
    for prefix, owner in module.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
            matrix = tensor.dim() > 1
            inputs = parameter[0].numel() if matrix else 400
            share = _GATES if "_mod." in f"{prefix}." else 1.0
            mean = 0.0 if matrix or name.endswith("bias") or share < 1 else 1.0
            tensor.normal_(mean, share * inputs**-0.5, generator=generator)
            owner.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner.register_buffer(name, _buffer(name, buffer, device, generator))
    return module.eval()


def _buffer(name: str, like: Tensor, device: torch.device, generator: torch.Generator) -> Tensor:
    shape = like.shape
    if like.dtype == torch.uint8:  # MXFP4
        low, high = _SCALES if name.endswith("scales") else (0, 256)
        return torch.randint(
            low, high, shape, dtype=torch.uint8, device=device, generator=generator
        )
    make = torch.ones if name == "running_var" else torch.zeros
    return make(shape, dtype=like.dtype, device=device)
