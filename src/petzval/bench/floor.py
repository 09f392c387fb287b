"""The least that a picture can cost: operations and bytes of each stage, counted, not measured.

Operations are those of matrix products. Bytes are weights, read once a call, and the inputs and
outputs of every product, each once, as if all that lies between were fused. Both are of the best
way: no needless branch, modulations folded, the template's prefix cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petzval.bench.networks import PREFIX_LENGTH
from petzval.bench.setting import Setting
from petzval.models.dry_run import dry_run
from petzval.models.flops import forward_flops
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.vae import Autoencoder, AutoencoderConfig, Upsample
from petzval.weights.manifest import build_on_meta

STAGES = ("encode", "denoise", "decode")

_MXFP4_BITS = 4.25
"""A weight and its share of a scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one stage: operations, and bytes moved."""

    flops: float
    bytes: float

    def times(self, count: float) -> Cost:
        """The same so many times."""
        return Cost(flops=count * self.flops, bytes=count * self.bytes)

    def plus(self, other: Cost) -> Cost:
        """Both."""
        return Cost(flops=self.flops + other.flops, bytes=self.bytes + other.bytes)


def stage_costs(setting: Setting) -> dict[str, Cost]:
    """Of each stage, for the whole networks, whatever part of them is built."""
    sizes, size = setting.whole, 2 if setting.dtype == "bfloat16" else 4
    height, width = setting.grid
    calls = [setting.text_tokens] + ([0] if setting.guidance != 1.0 else [])
    step = Cost(flops=0.0, bytes=0.0)
    for text in calls:
        step = step.plus(_call(sizes.denoiser, height * width, text, setting.batch, size))
    layers = max(setting.layers_read) + 1
    tokens = setting.batch * setting.text_tokens
    return {
        "encode": _encode(sizes.encoder, layers, tokens, setting.text_tokens, size),
        "denoise": step.times(float(setting.steps)),
        "decode": _decode(sizes.autoencoder, setting.grid, setting.batch, size),
    }


def denoiser_share(setting: Setting) -> float:
    """How many times the work of the blocks and steps that are measured the whole picture does."""
    height, width = setting.grid
    tokens = ([height * width], [setting.text_tokens])
    whole = forward_flops(setting.whole.denoiser, *tokens)
    built = forward_flops(setting.built().denoiser, *tokens)
    return whole / built * setting.steps / setting.calls


def encoder_share(setting: Setting) -> float:
    """How many times the layers that are built the whole text encoder has."""
    layers = max(setting.layers_read) + 1
    return layers / (setting.encoder_layers or layers)


def _call(config: MMDiTConfig, image: int, text: int, batch: int, size: int) -> Cost:
    """One branch of one step, with folded modulations."""
    width, hidden = config.hidden_size, int(config.hidden_size / 3 * 8)
    modulation = 2 * 2 * 6 * width**2 * config.num_layers
    flops = forward_flops(config, [image] * batch, [text] * batch) - batch * modulation
    streams = 2 if text else 1
    weights = streams * (4 * width**2 + 3 * width * hidden) * config.num_layers
    # Inputs and outputs: qkv 1 + 3 widths, attention 3 + 1, projection 2, w1 and w3 1 and two
    # hidden, w2 one hidden and 1.
    activations = (12 * width + 3 * hidden) * (image + text) * batch * config.num_layers
    return Cost(flops=float(flops), bytes=float(size * (weights + activations)))


def _encode(config: GptOssConfig, layers: int, tokens: int, each: int, size: int) -> Cost:
    """All layers, for tokens behind a cached prefix; every expert is needed by some token."""
    wide, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    narrow = config.num_key_value_heads * config.head_dim
    attention = wide * (heads + 2 * narrow) + heads * wide
    expert = 3 * wide * config.intermediate_size
    chosen = config.num_experts_per_tok * expert + wide * config.num_local_experts
    scores = 2 * heads * (PREFIX_LENGTH + each)
    flops = 2 * tokens * (attention + chosen + scores) * layers
    packed = _MXFP4_BITS / 8 if config.packed_experts else size
    weights = layers * (size * attention + packed * config.num_local_experts * expert)
    return Cost(flops=float(flops), bytes=float(weights))


def _decode(config: AutoencoderConfig, grid: tuple[int, int], batch: int, size: int) -> Cost:
    """The decoder, by its own code on shapes without numbers."""
    module = build_on_meta(config)
    assert isinstance(module, Autoencoder)
    moved = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal moved
        weights = sum(parameter.numel() for parameter in layer.parameters())
        moved += weights + batch * (inputs[0].numel() + output.numel())

    kinds = (nn.Conv2d, nn.Linear, Upsample)  # the last calls its convolution by its weight
    handles = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, kinds)]
    shape = (1, config.latent_channels, 2 * grid[0], 2 * grid[1])
    footprint = dry_run(lambda: module.decode(torch.empty(shape, device="meta")))
    for handle in handles:
        handle.remove()
    return Cost(flops=float(batch * footprint.flops), bytes=float(size * moved))
