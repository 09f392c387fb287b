"""The fake score: a denoiser that knows the student's pictures, in full or as a LoRA.

Full, it costs what the student costs: weights, gradients and two moments, 16 bytes a parameter in
float32. As a LoRA it costs its weights, 4 bytes a parameter: gradients and moments are those of the
small halves. Its base is not frozen, though; it moves with the student's alignment, which a LoRA
carries out exactly:

    phi = W + scale B A
    (1 - mu) phi + mu theta = [(1 - mu) W + mu theta] + scale [(1 - mu) B] A
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from petzval.distill import terms
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.pretrain.layout import denoiser_layout
from petzval.training.lora import LoraAdapter, LoraConfig
from petzval.training.parallel import Layout

_BASE, _PAIR = ".base.", ".pair."


def as_fake_score(model: MMDiT, lora: LoraConfig | None, *, seed: int) -> MMDiT:
    """A copy of the teacher made ready to learn, in place: all of it, or low-rank changes."""
    model.requires_grad_(True)
    if lora is not None:
        LoraAdapter(model, lora, seed=seed)
    return model


def fake_score_layout(config: MMDiTConfig, lora: LoraConfig | None) -> Layout:
    """As the denoiser's; the halves beside layers that no loss reaches are idle, too."""
    layout = denoiser_layout(config)
    if lora is None:
        return layout
    last = f"transformer_blocks.{config.num_layers - 1}"
    halves = (f"{last}.attn.to_add_out.pair.*", f"{last}.txt_mlp.*.pair.*")
    return dataclasses.replace(layout, idle=layout.idle + halves)


@torch.no_grad()
def align(fake: nn.Module, student: nn.Module, weight: float) -> None:
    """phi <- (1 - mu) phi + mu theta (`terms.align`), of a full fake score or one with a LoRA."""
    weights: dict[str, Tensor] = {
        name.replace(_BASE, "."): parameter
        for name, parameter in fake.named_parameters()
        if _PAIR not in name
    }
    terms.align(weights, dict(student.named_parameters()), weight)
    for name, parameter in fake.named_parameters():
        if name.endswith("lora_B"):
            parameter.mul_(1 - weight)
