"""Training on samples of different lengths: padded batches with a mask, against one packed row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.case import Case, Prepared
from petzval.bench import original
from petzval.models.mmdit import MMDiT
from petzval.models.packed import pack_layout
from petzval.models.sizes import MINI_MMDIT

Sample = tuple[tuple[int, int], int]
"""Grid of a picture, and text tokens."""

ONE_SIZE: tuple[Sample, ...] = tuple(((12, 12), n) for n in (24, 31, 36, 40, 47, 58, 0, 150))
"""192 x 192 pixels; mostly short captions, a blank one and a long one."""

MIXED_SIZES: tuple[Sample, ...] = (
    *(((8, 8), n) for n in (24, 33, 0, 47, 58, 90)),
    *(((12, 12), n) for n in (29, 40, 120)),
    *(((16, 16), n) for n in (36, 64)),
)
"""The areas of 128, 192 and 256 squared, as tokens balance them."""


class _Training:
    """Forward and backward pass of mini's denoiser on some samples."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.model = MMDiT(MINI_MMDIT)
        original.randomise(self.model, seed=1)
        self.samples = sorted(samples)  # samples of one size stand together
        generator = torch.Generator().manual_seed(2)
        layers = len(MINI_MMDIT.selected_layer_index)
        self.tokens = [
            torch.randn(rows * columns, MINI_MMDIT.in_channels, generator=generator)
            for (rows, columns), _ in self.samples
        ]
        self.features = [
            torch.randn(layers, length, MINI_MMDIT.enc_hidden_dim, generator=generator)
            for _, length in self.samples
        ]
        self.sigmas = torch.rand(len(samples), generator=generator)

    def batches(self) -> Tensor:
        """A batch for each size; texts padded to the longest of the batch, and a mask."""
        parts: list[Tensor] = []
        for grid in dict.fromkeys(grid for grid, _ in self.samples):
            members = [i for i, (other, _) in enumerate(self.samples) if other == grid]
            lengths = torch.tensor([self.samples[i][1] for i in members])
            mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
            padded = torch.zeros(len(self.features[0]), *mask.shape, MINI_MMDIT.enc_hidden_dim)
            for row, i in enumerate(members):
                padded[:, row, : self.samples[i][1]] = self.features[i]
            tokens = torch.stack([self.tokens[i] for i in members])
            out = self.model.velocity(tokens, list(padded), self.sigmas[members], grid, mask)
            parts += list(out)
        return torch.cat(parts)

    def packed(self) -> Tensor:
        """All samples in one row; nothing padded."""
        grids, lengths = zip(*self.samples, strict=True)
        layout = pack_layout(grids, lengths, MINI_MMDIT.axes_dims_rope)
        features = list(torch.cat(self.features, dim=1)[:, None])
        tokens = layout.join(self.tokens)
        return self.model.packed_velocity(tokens, features, self.sigmas, layout)[0]

    def trained(self, *, packed: bool) -> Tensor:
        """Velocity of all samples, one behind the other, after a backward pass."""
        with torch.inference_mode(False), torch.enable_grad():
            out = self.packed() if packed else self.batches()
            self.model.zero_grad()
            out.square().mean().backward()
            return out.detach()


def _prepare(samples: Sequence[Sample]) -> Prepared:
    with torch.inference_mode(False):
        training = _Training(samples)
    text = [length for _, length in samples]
    image = sum(rows * columns for (rows, columns), _ in samples)
    return Prepared(
        ways={
            "padded batch and mask": lambda: training.trained(packed=False),
            "packed": lambda: training.trained(packed=True),
        },
        dtype="float32",
        facts={"samples": len(samples), "image tokens": image, "text tokens": sum(text)},
    )


CASES = (
    Case(
        name="packed-texts",
        title="training on one size with captions of 0 to 150 tokens, mini's size",
        why="a batch pads every caption to the longest; a packed row pads nothing",
        prepare=lambda: _prepare(ONE_SIZE),
        min_ratio=1.0,
        tolerance=2e-3,
    ),
    Case(
        name="packed-sizes",
        title="training on three sizes of picture in one step, mini's size",
        why="sizes that cannot share a batch share a row, in one forward pass",
        prepare=lambda: _prepare(MIXED_SIZES),
        min_ratio=1.0,
        tolerance=2e-3,
    ),
)
