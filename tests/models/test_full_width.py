"""The published width at two blocks: bfloat16 against float32, and a whole 1024 x 1024 call."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from petzval.models.mmdit import MMDiT
from petzval.models.sizes import LENS_MMDIT

NUM_TEXT_TOKENS = 100


@pytest.fixture(scope="module")
def two_blocks() -> MMDiT:
    with torch.device("meta"):
        model = MMDiT(dataclasses.replace(LENS_MMDIT, num_layers=2))
    model = model.to_empty(device="cpu").bfloat16().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return model


def call(model: MMDiT, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn((1, grid[0] * grid[1], 128), generator=generator).to(dtype)
    features = [
        torch.randn((1, NUM_TEXT_TOKENS, 2880), generator=generator).to(dtype) for _ in range(4)
    ]
    return model.velocity(tokens, features, torch.tensor([0.75]), grid)


def test_bfloat16_follows_float32(two_blocks: MMDiT) -> None:
    got = call(two_blocks, (8, 12), torch.bfloat16).float()
    expected = call(two_blocks.float(), (8, 12), torch.float32)
    two_blocks.bfloat16()
    relative = (got - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert relative < 0.03


def test_a_whole_megapixel_call(two_blocks: MMDiT) -> None:
    got = call(two_blocks, (64, 64), torch.bfloat16)
    assert got.shape == (1, 4096, 128)
    assert torch.isfinite(got).all()
    assert 0.1 < got.float().std() < 10.0
