"""Find the things in an illustration: a small detector of centres, blind to what they are.

Objects as points (Zhou, Wang, Krähenbühl 2019): a heat map of centres at a quarter of the
picture's sides, and at each centre the box's size and the centre's offset within its cell.
Order: the network, what it says about a picture, how its targets are made, its loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from petzval.scoring.cutouts import to_tensor
from petzval.scoring.examples import Box
from petzval.scoring.scorer import Picture

STRIDE = 4
AREA = 128 * 128
"""Pictures are scaled to about this many pixels before they are looked at."""


class DepthwiseBlock(nn.Module):
    """Filter each channel (3 x 3), mix channels (1 x 1); plus the input where shapes allow."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1) -> None:
        super().__init__()
        self.filter = nn.Conv2d(num_in, num_in, 3, stride, padding=1, groups=num_in, bias=False)
        self.mix = nn.Conv2d(num_in, num_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(num_out)
        self.residual = stride == 1 and num_in == num_out

    def forward(
        self, x: Float[Tensor, "batch num_in height width"]
    ) -> Float[Tensor, "batch num_out new_height new_width"]:
        hidden = F.relu(self.norm(self.mix(self.filter(x))))
        return hidden + x if self.residual else hidden


class Detector(nn.Module):
    """Picture -> heat map, box sizes and offsets on a grid of a quarter of the sides.

    Args:
        width: channels at a quarter of the sides; deeper stages have 2, 3 and 4 times as many.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
        )
        widths = [width, 2 * width, 3 * width, 4 * width]
        stages: list[nn.Module] = []
        num_in = width // 2
        for num_out in widths:
            down = DepthwiseBlock(num_in, num_out, 2)
            stages.append(nn.Sequential(down, DepthwiseBlock(num_out, num_out)))
            num_in = num_out
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(nn.Conv2d(n, width, 1) for n in widths)
        self.merge = nn.Sequential(DepthwiseBlock(width, width), DepthwiseBlock(width, width))
        self.out = nn.Conv2d(width, 5, 1)
        assert self.out.bias is not None
        # Centres are rare: start by expecting few, or the empty cells' loss drowns everything else.
        with torch.no_grad():
            self.out.bias[0] = -4.0

    def forward(
        self, pictures: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 5 grid_height grid_width"]:
        """Centre logit, log height, log width (of cells), y and x offset, for pictures in [0, 1].

        Height and width must be multiples of 32.
        """
        x = self.stem(pictures * 2 - 1)
        maps: list[Tensor] = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        merged = maps[-1]
        for finer in reversed(maps[:-1]):
            merged = finer + F.interpolate(merged, scale_factor=2.0, mode="nearest")
        return self.out(self.merge(merged))


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One found thing: a box (top, left, bottom, right) in pixels and a confidence, 0 to 1."""

    box: tuple[float, float, float, float]
    confidence: float

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) in pixels."""
        return ((self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2)

    def pixels(self, height: int, width: int) -> Box:
        """The box in whole pixels, clipped to a picture, at least 1 x 1."""
        top = min(height - 1, max(0, round(self.box[0])))
        left = min(width - 1, max(0, round(self.box[1])))
        bottom = min(height, max(top + 1, round(self.box[2])))
        right = min(width, max(left + 1, round(self.box[3])))
        return (top, left, bottom, right)


def network_size(height: int, width: int) -> tuple[int, int]:
    """The size near `AREA`, in multiples of 32, nearest in shape to a picture."""
    scale = (AREA / (height * width)) ** 0.5
    return (max(32, 32 * round(height * scale / 32)), max(32, 32 * round(width * scale / 32)))


@torch.inference_mode()
def detect(network: Detector, picture: Picture, *, threshold: float) -> list[Detection]:
    """Things in a picture [height, width, 3], surest first.

    Args:
        threshold: smallest confidence worth reporting, 0 to 1.
    """
    height, width = picture.shape[:2]
    size = network_size(height, width)
    scaled = F.interpolate(
        to_tensor(picture)[None], size=size, mode="bilinear", align_corners=False, antialias=True
    )
    outputs = network(scaled)[0]
    scale = (STRIDE * height / size[0], STRIDE * width / size[1])
    return _suppress(_peaks(outputs, scale, threshold))


def _peaks(
    outputs: Float[Tensor, "5 grid_height grid_width"],
    scale: tuple[float, float],
    threshold: float,
) -> list[Detection]:
    heat = outputs[0].sigmoid()
    highest = F.max_pool2d(heat[None, None], 3, 1, 1)[0, 0]
    rows, columns = torch.nonzero((heat == highest) & (heat >= threshold), as_tuple=True)
    found: list[Detection] = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        values: list[float] = outputs[:, row, column].tolist()
        _, log_height, log_width, offset_y, offset_x = values
        reach = tuple(math.exp(min(8.0, max(-4.0, size))) / 2 for size in (log_height, log_width))
        y, x = row + 0.5 + offset_y, column + 0.5 + offset_x
        box = (
            (y - reach[0]) * scale[0],
            (x - reach[1]) * scale[1],
            (y + reach[0]) * scale[0],
            (x + reach[1]) * scale[1],
        )
        found.append(Detection(box=box, confidence=float(heat[row, column])))
    return sorted(found, key=lambda one: (-one.confidence, one.box))


def overlap(a: Detection, b: Detection) -> float:
    """Area shared by two boxes over the area of the smaller one, 0 to 1."""
    height = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    width = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(one.box[2] - one.box[0]) * (one.box[3] - one.box[1]) for one in (a, b)]
    return height * width / max(1e-6, min(areas))


def _suppress(found: Sequence[Detection], limit: float = 0.6) -> list[Detection]:
    kept: list[Detection] = []
    for one in found:
        if all(overlap(one, other) <= limit for other in kept):
            kept.append(one)
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a picture should be answered with.

    Attributes:
        heat: 1 at centres, falling off around them.
        sizes: log height, log width, y and x offset; read where `here` is 1.
        here: 1 in the cells that hold a centre.
    """

    heat: Float[Tensor, "grid_height grid_width"]
    sizes: Float[Tensor, "4 grid_height grid_width"]
    here: Float[Tensor, "grid_height grid_width"]


def targets_of(boxes: Sequence[Box], height: int, width: int) -> Targets:
    """Targets of a picture of `height` x `width` pixels (multiples of 4) with these boxes."""
    rows, columns = height // STRIDE, width // STRIDE
    heat = torch.zeros(rows, columns)
    sizes, here = torch.zeros(4, rows, columns), torch.zeros(rows, columns)
    grid_y = torch.arange(rows)[:, None].float()
    grid_x = torch.arange(columns)[None].float()
    for box in boxes:
        top, left, bottom, right = (edge / STRIDE for edge in box)
        y, x = (top + bottom) / 2, (left + right) / 2
        row, column = min(rows - 1, int(y)), min(columns - 1, int(x))
        tall, wide = max(0.5, bottom - top), max(0.5, right - left)
        spread = max(0.7, 0.12 * min(tall, wide))
        bump = torch.exp(-((grid_y - row) ** 2 + (grid_x - column) ** 2) / (2 * spread**2))
        heat = torch.maximum(heat, bump)
        here[row, column] = 1
        sizes[:, row, column] = torch.tensor(
            [math.log(tall), math.log(wide), y - row - 0.5, x - column - 0.5]
        )
    return Targets(heat=heat, sizes=sizes, here=here)


def detection_loss(
    outputs: Float[Tensor, "batch 5 grid_height grid_width"], targets: Sequence[Targets]
) -> Float[Tensor, ""]:
    """Penalty-reduced focal loss of the heat map plus L1 of sizes and offsets at the centres."""
    heat = torch.stack([one.heat for one in targets])
    here = torch.stack([one.here for one in targets])
    sizes = torch.stack([one.sizes for one in targets])
    logits = outputs[:, 0].float()
    probability = logits.sigmoid()
    right = here * (1 - probability) ** 2 * F.logsigmoid(logits)
    wrong = (1 - here) * (1 - heat) ** 4 * probability**2 * F.logsigmoid(-logits)
    count = here.sum().clamp(min=1)
    focal = -(right + wrong).sum() / count
    distance = ((outputs[:, 1:].float() - sizes).abs() * here[:, None]).sum() / count
    return focal + 0.5 * distance
