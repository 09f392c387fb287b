"""Dry runs: the networks' own code on tensors without numbers, for what a picture asks of it.

`models.dry_run` counts what such a run needs; here is what is run. Of blocks that are all alike,
two stand for all.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from petzval.conditioning.template import SUFFIX_LENGTH
from petzval.models.experts import (
    Experts,
    MixtureOfExperts,
    Nvfp4Experts,
    PackedExperts,
    gated_activation,
)
from petzval.models.gpt_oss import DecoderLayer, GptOssEncoder
from petzval.models.mmdit import MMDiT, Pass, StepModulation
from petzval.models.rope import RopeTables

DEFAULT_TEXT_TOKENS = 128 + SUFFIX_LENGTH
"""Of a prompt that is not known yet."""

META = torch.device("meta")

N = TypeVar("N", bound=nn.Module)

_TOKENS = 32

DRY_LAYERS = 2
"""Of the text encoder, and blocks of the denoiser: one like the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a picture asks of the networks.

    Attributes:
        grid: (height, width) in tokens.
        calls: of the denoiser in a branch.
        branches: 1 at guidance 1, else 2.
        text_tokens: of the longer prompt, suffix included.
        texts: that are encoded for a picture; a blank negative prompt is none.
        batch: pictures that run through the networks together.
        text_batch: texts of one length that are encoded together where many are at once.
        all_texts: of the whole request, whose features may be kept at once.
    """

    grid: tuple[int, int]
    calls: int
    branches: int
    text_tokens: int = DEFAULT_TEXT_TOKENS
    texts: int = 1
    batch: int = 1
    text_batch: int = 1
    all_texts: int = 1

    def covers(self, other: Work) -> bool:
        """Whether the other asks for no more in anything, and so needs no more memory."""
        return all(mine >= its for mine, its in zip(self._amounts, other._amounts, strict=True))

    @property
    def rounded(self) -> Work:
        """The same with a prompt of a rounded length, so that few have to be reckoned."""
        return replace(self, text_tokens=-(-self.text_tokens // _TOKENS) * _TOKENS)

    @property
    def _amounts(self) -> tuple[int, ...]:
        counts = (self.calls, self.branches, self.text_tokens, self.texts)
        return (*self.grid, *counts, self.batch, self.text_batch, self.all_texts)

    @property
    def kept_texts(self) -> int:
        """Texts whose features are kept until the picture is done."""
        return max(self.all_texts, self.batch * self.texts)


def shortened(network: N) -> N:
    """The same with its first `DRY_LAYERS` alone, to be run dry: it must not be used any more."""
    if isinstance(network, GptOssEncoder):
        network.model.layers = network.model.layers[:DRY_LAYERS]
    elif isinstance(network, MMDiT):
        network.transformer_blocks = network.transformer_blocks[:DRY_LAYERS]
    return network


def dry_encoder(
    encoder: GptOssEncoder, tokens: int, dtype: torch.dtype, *, texts: int = 1
) -> Tensor:
    """A pass, see `shortened`, in which each token goes to the first experts: as much work."""
    x = torch.empty(texts, tokens, encoder.config.hidden_size, dtype=dtype, device=META)
    angles = torch.empty(tokens, encoder.config.head_dim // 2, device=META)
    allowed = torch.ones(1, tokens, tokens, dtype=torch.bool, device=META)
    states = [torch.empty_like(x) for _ in encoder.selected_layers]
    for layer in encoder.model.layers:
        assert isinstance(layer, DecoderLayer)
        attended = layer.self_attn(layer.input_layernorm(x), (angles, angles), allowed, None)[0]
        x = x + attended
        x = x + _dry_experts(layer.mlp, layer.post_attention_layernorm(x))
    return torch.stack([x, *states])


def _dry_experts(mixture: MixtureOfExperts, x: Tensor) -> Tensor:
    flat = x.flatten(0, 1)
    mixture.router.choose(mixture.router.logits(flat))
    experts = mixture.experts
    assert isinstance(experts, Experts)
    out = torch.zeros_like(flat)
    for expert in range(mixture.router.num_chosen):
        gate_up, gate_up_bias, down, down_bias = experts.matrices(expert)
        hidden = gated_activation(flat @ gate_up + gate_up_bias, experts.limit)
        out = out + (hidden @ down + down_bias)
    return out.unflatten(0, x.shape[:2])


def dry_decoding(encoder: GptOssEncoder) -> object:
    """What `dry_encoder` decodes: the matrices of the first experts of each layer."""
    mixtures = [each for each in encoder.modules() if isinstance(each, MixtureOfExperts)]
    for mixture in mixtures:
        assert isinstance(mixture.experts, Experts)
        for expert in range(mixture.router.num_chosen):
            mixture.experts.matrices(expert)
    return None


def packed_values(encoder: GptOssEncoder) -> int:
    """Values that are decoded from 4-bit experts in one pass, two a byte."""
    return sum(
        2 * codes.numel()
        for experts in encoder.modules()
        if isinstance(experts, PackedExperts | Nvfp4Experts)
        for name, codes in experts.named_buffers(recurse=False)
        if name.endswith(("_blocks", "_codes"))
    )


def dry_denoiser(
    denoiser: MMDiT, work: Work, dtype: torch.dtype, *, side_by_side: bool
) -> list[Tensor]:
    """A call of the denoiser, see `shortened`; of its blocks the last has no text to give."""
    config = denoiser.config
    height, width = work.grid
    text_tokens = work.text_tokens
    tokens = torch.empty(work.batch, height * width, config.in_channels, device=META)
    other = torch.empty_like(tokens) if work.branches == 2 else None
    text = torch.empty(work.batch, text_tokens, config.hidden_size, dtype=dtype, device=META)
    angles_each = sum(config.axes_dims_rope) // 2
    angles = torch.empty(height * width + text_tokens, angles_each, device=META)
    rope = RopeTables(cos=angles, sin=angles, num_image_tokens=height * width)
    row = torch.empty(1, 6 * config.hidden_size, dtype=dtype, device=META)
    modulation = StepModulation(
        image=(row,) * config.num_layers,
        text=(row,) * config.num_layers,
        final=row[:, : 2 * config.hidden_size],
    )
    asked = Pass(tokens=tokens, text=text, modulation=modulation, rope=rope)
    if side_by_side:
        passes = [asked, replace(asked, text=torch.empty_like(text))][: work.branches]
        return denoiser.side_by_side(passes, lambda index: nullcontext())
    velocity = denoiser(tokens, text, modulation, rope)
    return [velocity] if other is None else [velocity, other]
