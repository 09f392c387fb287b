"""Floating-point operations of the denoiser, from its configuration alone, and what a GPU can do.

Counted is what `torch.utils.flop_counter` counts: matrix products, two operations a multiply-add;
norms, rotations and activations are left out. Training is the forward pass and twice its products
for the backward pass, less the gradients that nobody needs: of the latents and of the timestep's
sinusoid. What is computed again to save memory is not counted: that makes it *model* FLOPs, as
utilisation (MFU) is defined (Chowdhery et al. 2022, PaLM, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence

from petzval.errors import ConfigError
from petzval.models.mmdit import MMDiTConfig

SINUSOID_WIDTH = 256

PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "A800": 312e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H800": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A10": 125e12,
    "A30": 165e12,
    "A40": 150e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "RTX A6000": 155e12,
    "MI250X": 191.5e12,
    "MI300X": 1307e12,
}
"""Dense bfloat16 operations a second by the maker's data sheet, float32 accumulation, for one
device as torch counts them (a MI250X is two). The key is a part of the device's name."""


def peak_bf16_flops(device_name: str) -> float:
    """Peak of a device by its name, as `torch.cuda.get_device_name` gives it.

    Raises:
        ConfigError: the device is not in the table.
    """
    words = device_name.replace("-", " ").split()
    slower = {"Laptop", "MIG", "D"}.intersection(words)  # a namesake, or a slice of the device
    for name in sorted(PEAK_BF16_FLOPS, key=lambda name: -len(name.split())):
        if not slower and all(part in words for part in name.split()):
            return PEAK_BF16_FLOPS[name]
    raise ConfigError(
        f"the peak of {device_name!r} is not known",
        f"give it in operations a second; known are {', '.join(PEAK_BF16_FLOPS)}",
    )


def forward_flops(
    config: MMDiTConfig,
    image_tokens: Sequence[int],
    text_tokens: Sequence[int],
    *,
    skip_dead_text: bool = True,
) -> int:
    """Operations of one forward pass over some samples, packed or one by one.

    Args:
        image_tokens: of each sample.
        text_tokens: of each sample; 0 for one without text.
        skip_dead_text: as `MMDiT.skip_dead_text`: the last block computes no text output.
    """
    return _input_flops(config, image_tokens) + sum(
        _sample_flops(config, image, text, skip_dead_text=skip_dead_text)
        for image, text in zip(image_tokens, text_tokens, strict=True)
    )


def training_flops(
    config: MMDiTConfig,
    image_tokens: Sequence[int],
    text_tokens: Sequence[int],
    *,
    skip_dead_text: bool = True,
) -> int:
    """Operations of a forward and a backward pass; arguments as of `forward_flops`."""
    forward = forward_flops(config, image_tokens, text_tokens, skip_dead_text=skip_dead_text)
    needless = _input_flops(config, image_tokens)
    if not any(text_tokens):  # the text modulations are evaluated, and nothing leads back to them
        modulation = 2 * len(image_tokens) * 6 * config.hidden_size**2
        needless += 2 * config.num_layers * modulation
    return 3 * forward - needless


def mfu(
    config: MMDiTConfig,
    image_tokens: Sequence[int],
    text_tokens: Sequence[int],
    *,
    seconds: float,
    peak_flops: float,
) -> float:
    """Share of the hardware's peak that a training step reaches.

    Args:
        image_tokens, text_tokens: of each sample of the step, on all devices together.
        seconds: of the step.
        peak_flops: operations a second of all devices together; see `peak_bf16_flops`.

    Raises:
        ValueError: seconds or peak are not positive.
    """
    if seconds <= 0 or peak_flops <= 0:
        raise ValueError(f"seconds {seconds} and peak {peak_flops} must be above 0")
    return training_flops(config, image_tokens, text_tokens) / (seconds * peak_flops)


def _input_flops(config: MMDiTConfig, image_tokens: Sequence[int]) -> int:
    """The two layers whose inputs need no gradient: of the latents and of the sinusoid."""
    width = config.hidden_size
    latents = 2 * sum(image_tokens) * config.in_channels * width
    return latents + 2 * len(image_tokens) * SINUSOID_WIDTH * width


def _sample_flops(config: MMDiTConfig, image: int, text: int, *, skip_dead_text: bool) -> int:
    """All other layers, for one sample."""
    width, blocks = config.hidden_size, config.num_layers
    hidden = int(width / 3 * 8)
    qkv = 2 * 3 * width**2
    others = 2 * width**2 + 2 * 3 * width * hidden  # of a token whose output is used
    joint = image + text
    attention = 4 * width * joint  # scores and values, for one query
    in_block = joint * (qkv + others + attention) + 2 * 2 * 6 * width**2  # … and two modulations
    text_width = config.enc_hidden_dim * len(config.selected_layer_index)
    once = 2 * width**2 + 2 * 2 * width**2  # the timestep's second layer, the last modulation
    once += 2 * text * text_width * width + 2 * image * width * config.in_channels
    dead = text * (others + attention) if skip_dead_text else 0
    return blocks * in_block + once - dead
