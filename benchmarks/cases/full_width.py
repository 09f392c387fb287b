"""The published width at two blocks: what one call costs here, in time and in memory."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from benchmarks.case import Case, Prepared
from petzval.bench import original
from petzval.flow.noise import initial_noise
from petzval.models.mmdit import MMDiT
from petzval.models.rope import mmdit_rope
from petzval.models.sizes import LENS_MMDIT

GRID = (64, 64)
"""1024 x 1024 pixels."""

NUM_TEXT_TOKENS = 128


def _prepare() -> Prepared:
    config = dataclasses.replace(LENS_MMDIT, num_layers=2)
    with torch.device("meta"):
        model = MMDiT(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    original.randomise(model, seed=6)
    generator = torch.Generator("cpu").manual_seed(7)
    shape = (1, NUM_TEXT_TOKENS, config.enc_hidden_dim)
    features = [
        torch.randn(shape, generator=generator).to(torch.bfloat16)
        for _ in config.selected_layer_index
    ]
    tokens = initial_noise([0], GRID, config.in_channels)
    text = model.embed_text(features)
    modulation = model.modulations(torch.tensor([0.5]))[0]
    rope = mmdit_rope(GRID, NUM_TEXT_TOKENS, config.axes_dims_rope)

    def call() -> Tensor:
        return model(tokens, text, modulation, rope)

    weights = sum(parameter.nbytes for parameter in model.parameters())
    return Prepared(
        ways={"one call": call},
        dtype="bfloat16",
        facts={
            "blocks": 2,
            "image tokens": GRID[0] * GRID[1],
            "text tokens": NUM_TEXT_TOKENS,
            "MiB of weights": weights / 2**20,
        },
    )


CASES = (
    Case(
        name="full-width",
        title="one denoiser call at the published width, two of 48 blocks, 1024 x 1024",
        why="the full model's arithmetic and memory, on a machine that cannot hold all of it",
        prepare=_prepare,
        rounds=3,
    ),
)
