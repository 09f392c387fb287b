"""Grids of pictures for the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def to_pixels(image: Tensor) -> Image.Image:
    """One image [3, height, width] in [-1, 1], clamped, as 8-bit RGB by truncation."""
    scaled = (image.detach().float().clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(scaled.to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def grid(images: Sequence[Tensor], num_columns: int, *, gap: int = 4) -> Image.Image:
    """Pictures side by side, row by row; sizes may differ, each is centred in its cell.

    Args:
        images: each [3, height, width] in [-1, 1].
        num_columns: pictures a row.
        gap: pixels between cells.
    """
    assert images and num_columns > 0
    height = max(image.shape[1] for image in images) + gap
    width = max(image.shape[2] for image in images) + gap
    num_rows = -(-len(images) // num_columns)
    canvas = Image.new("RGB", (num_columns * width + gap, num_rows * height + gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, num_columns)
        top = gap + row * height + (height - gap - image.shape[1]) // 2
        left = gap + column * width + (width - gap - image.shape[2]) // 2
        canvas.paste(to_pixels(image), (left, top))
    return canvas


def save_grid(path: Path, images: Sequence[Tensor], num_columns: int) -> None:
    """Write a grid as PNG, whole or not at all, making the folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    grid(images, num_columns).save(draft, "PNG")
    draft.replace(path)
