"""The count of operations against torch's own, and against the paper."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from petzval.errors import ConfigError
from petzval.kernels import dispatch
from petzval.models.flops import (
    forward_flops,
    mfu,
    peak_bf16_flops,
    training_flops,
)
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.models.packed import pack_layout
from petzval.models.sizes import LENS_MMDIT, MINI_MMDIT

SMALL = MMDiTConfig(
    num_layers=2,
    num_attention_heads=2,
    in_channels=8,
    out_channels=2,
    enc_hidden_dim=12,
    selected_layer_index=(0, 1),
    attention_head_dim=16,
    axes_dims_rope=(4, 6, 6),
)


def counted(config: MMDiTConfig, grid: tuple[int, int], text: int, *, train: bool) -> int:
    """By torch, on the reference arithmetic: it does not know every fused kernel of a CPU."""
    model = MMDiT(config)
    features = [torch.randn(2, text, config.enc_hidden_dim) for _ in config.selected_layer_index]
    tokens = torch.randn(2, grid[0] * grid[1], config.in_channels)
    with dispatch.reference(), FlopCounterMode(display=False) as counter:
        out = model.velocity(tokens, features if text else [], torch.tensor([0.2, 0.7]), grid)
        if train:
            out.square().mean().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "text"), [(SMALL, 0), (SMALL, 3), (SMALL, 40), (MINI_MMDIT, 40)]
)
def test_the_count_is_that_of_torch(config: MMDiTConfig, text: int) -> None:
    image, texts = [6 * 5] * 2, [text] * 2
    forward = counted(config, (6, 5), text, train=False)
    trained = counted(config, (6, 5), text, train=True)
    assert abs(forward_flops(config, image, texts) / forward - 1) < 1e-4
    assert abs(training_flops(config, image, texts) / trained - 1) < 1e-4


def test_packed_samples_count_as_each_by_itself() -> None:
    grids, texts = [(3, 4), (5, 5)], [7, 0]
    layout = pack_layout(grids, texts, SMALL.axes_dims_rope)
    model = MMDiT(SMALL)
    features = [torch.randn(1, 7, 12) for _ in range(2)]
    with dispatch.reference(), FlopCounterMode(display=False) as counter:
        model.packed_velocity(torch.randn(1, 37, 8), features, torch.rand(2), layout)
    expected = forward_flops(SMALL, layout.image_lengths, texts)
    assert abs(expected / counter.get_total_flops() - 1) < 0.01


def test_text_that_nobody_reads_costs() -> None:
    model = MMDiT(SMALL)
    model.skip_dead_text = False
    features = [torch.randn(1, 9, 12) for _ in range(2)]
    with dispatch.reference(), FlopCounterMode(display=False) as counter:
        model.velocity(torch.randn(1, 12, 8), features, torch.rand(1), (3, 4))
    whole = forward_flops(SMALL, [12], [9], skip_dead_text=False)
    assert abs(whole / counter.get_total_flops() - 1) < 0.01
    assert whole > forward_flops(SMALL, [12], [9])


def test_lens_takes_17_tera_operations_at_1024() -> None:
    """17.1 of a forward pass at 64 x 64 tokens is with a text of 187 to 206 tokens."""
    rounded = [round(forward_flops(LENS_MMDIT, [4096], [n]) / 1e12, 1) for n in range(180, 220)]
    texts = [180 + i for i, tera in enumerate(rounded) if tera == 17.1]
    assert texts == list(range(187, 207))
    assert forward_flops(LENS_MMDIT, [4096], [0]) == pytest.approx(16.09e12, rel=0.001)
    ratio = training_flops(LENS_MMDIT, [4096], [200]) / forward_flops(LENS_MMDIT, [4096], [200])
    assert 2.99 < ratio < 3


def test_cost_follows_the_model_of_the_sampler() -> None:
    """Of tokens alone, n (6 width + n) in units of 4 width a block, within 1 %."""
    width, blocks = LENS_MMDIT.hidden_size, LENS_MMDIT.num_layers
    for image, text in ((1024, 150), (2304, 150), (4096, 150)):
        n = image + text
        modelled = blocks * 4 * width * n * (6 * width + n)
        assert forward_flops(LENS_MMDIT, [image], [text]) == pytest.approx(modelled, rel=0.01)


def test_utilisation() -> None:
    operations = training_flops(MINI_MMDIT, [256, 64], [40, 0])
    found = mfu(MINI_MMDIT, [256, 64], [40, 0], seconds=2.0, peak_flops=float(operations))
    assert found == pytest.approx(0.5)
    for seconds, peak in ((0.0, 1e12), (1.0, -1.0)):
        with pytest.raises(ValueError, match="must be above 0"):
            mfu(MINI_MMDIT, [256], [40], seconds=seconds, peak_flops=peak)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40S", 362e12),
        ("AMD Instinct MI300X", 1307e12),
    ],
)
def test_a_device_is_known_by_its_name(name: str, peak: float) -> None:
    assert peak_bf16_flops(name) == peak


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Tesla T4",
        "NVIDIA A1000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100 MIG 1g.5gb",
    ],
)
def test_an_unknown_device_is_said(name: str) -> None:
    with pytest.raises(ConfigError, match="is not known"):
        peak_bf16_flops(name)


def test_more_layers_cost_more() -> None:
    deeper = dataclasses.replace(SMALL, num_layers=4)
    assert forward_flops(deeper, [30], [3]) > 1.9 * forward_flops(SMALL, [30], [3])
