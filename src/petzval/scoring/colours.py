"""Named colours: what a caption calls a colour, and which name a measured colour gets.

Pictures are composed, captioned and judged with these same tables, so that a disagreement is
always about the picture and never about the word.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

RGB = tuple[int, int, int]

OBJECT_COLOURS: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (220, 38, 38),
        "orange": (249, 128, 22),
        "yellow": (250, 208, 30),
        "green": (34, 160, 70),
        "blue": (37, 99, 235),
        "purple": (138, 60, 210),
        "pink": (244, 120, 180),
        "brown": (125, 75, 40),
        "black": (20, 20, 22),
        "white": (252, 252, 252),
        "gray": (140, 144, 150),
    }
)
"""The eleven basic colour terms, as paint for shapes and silhouettes."""

BACKGROUND_COLOURS: Mapping[str, RGB] = MappingProxyType(
    {
        "white": (250, 250, 250),
        "black": (22, 22, 26),
        "gray": (150, 153, 158),
        "red": (205, 50, 50),
        "orange": (245, 150, 60),
        "yellow": (250, 218, 90),
        "green": (70, 165, 95),
        "blue": (55, 105, 215),
        "purple": (135, 85, 190),
        "pink": (250, 180, 205),
        "brown": (130, 88, 58),
        "light blue": (178, 216, 246),
        "beige": (243, 229, 202),
        "teal": (30, 145, 145),
    }
)
"""Plain backgrounds. Drawn equally often, so no colour is the easy guess."""


def nearest_index(
    pixels: NDArray[np.uint8], palette: Mapping[str, RGB] = BACKGROUND_COLOURS
) -> NDArray[np.intp]:
    """Index of the palette colour nearest to each pixel of [N, 3], by redmean distance.

    Redmean weights the squared differences of red and blue by how red the two colours are.
    """
    table = np.array(list(palette.values()), np.float32)[None]
    values = pixels.astype(np.float32)[:, None]
    mean = (values[..., 0] + table[..., 0]) / 2
    red, green, blue = np.moveaxis((values - table) ** 2, -1, 0)
    distance = (2 + mean / 256) * red + 4 * green + (2 + (255 - mean) / 256) * blue
    return distance.argmin(axis=1).astype(np.intp)


def nearest_name(rgb: RGB, palette: Mapping[str, RGB]) -> str:
    """Name of the palette colour nearest to `rgb`, by redmean distance."""
    return list(palette)[int(nearest_index(np.array([rgb], np.uint8), palette)[0])]


def name_pixels(rgb: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Index into `OBJECT_COLOURS` for each pixel of `rgb` [N, 3], by hue, value and saturation.

    Distance in RGB calls a dark yellow brown and a shaded white gray far too often; people go by
    hue first, so this does too.
    """
    names = list(OBJECT_COLOURS)
    pixels = rgb.astype(np.float32) / 255
    high, low = pixels.max(axis=1), pixels.min(axis=1)
    spread = high - low
    saturation = np.where(high > 0, spread / np.maximum(high, 1e-6), 0)
    red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    safe = np.maximum(spread, 1e-6)
    hue = (
        np.select(
            [high == red, high == green],
            [((green - blue) / safe) % 6, (blue - red) / safe + 2],
            default=(red - green) / safe + 4,
        )
        * 60
    )
    grey = (saturation < 0.16) | (spread < 0.08)
    rules = [
        (high < 0.2, "black"),
        (grey & (high > 0.86), "white"),
        (grey & (high < 0.3), "black"),
        (grey, "gray"),
        ((hue < 50) & (hue >= 12) & (high < 0.68), "brown"),
        ((hue < 20) & (saturation < 0.7) & (saturation >= 0.3) & (high < 0.8), "brown"),
        (((hue < 15) | (hue >= 325)) & (saturation < 0.55) & (high > 0.75), "pink"),
        ((hue < 14) | (hue >= 345), "red"),
        (hue < 36, "orange"),
        (hue < 68, "yellow"),
        (hue < 170, "green"),
        (hue < 250, "blue"),
        (hue < 292, "purple"),
    ]
    conditions = [condition for condition, _ in rules]
    choices = [names.index(name) for _, name in rules]
    return np.select(conditions, choices, default=names.index("pink")).astype(np.intp)


def colour_shares(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Share of the pixels [N, 3] that each colour name covers, largest first; empty for none."""
    if len(pixels) == 0:
        return {}
    counts = np.bincount(name_pixels(pixels), minlength=len(OBJECT_COLOURS)) / len(pixels)
    order = np.argsort(-counts, kind="stable")
    names = list(OBJECT_COLOURS)
    return {names[i]: float(counts[i]) for i in order}


def dominant_colour(rgba: NDArray[np.uint8], *, share: float = 0.3) -> str | None:
    """The colour name that covers the most of a picture's mask, or None below `share` of it.

    Args:
        rgba: [height, width, 4], premultiplied or not: only nearly opaque pixels are counted.
        share: smallest fraction of the mask, 0 to 1, that makes a colour worth naming.
    """
    shares = colour_shares(rgba[rgba[..., 3] > 200][:, :3])
    best = next(iter(shares), None)
    return best if best is not None and shares[best] >= share else None


def border_pixels(picture: NDArray[np.uint8], *, share: float = 0.04) -> NDArray[np.uint8]:
    """The pixels [N, 3] of the frame of a picture [height, width, 3].

    Args:
        share: thickness of the frame as a fraction of the shorter side; at least one pixel.
    """
    height, width = picture.shape[:2]
    thick = max(1, round(share * min(height, width)))
    frame = np.ones((height, width), bool)
    frame[thick : height - thick, thick : width - thick] = False
    return picture[frame]


def background_shares(
    picture: NDArray[np.uint8], palette: Mapping[str, RGB] = BACKGROUND_COLOURS
) -> dict[str, float]:
    """Share of a picture's frame that each background name covers, largest first."""
    index = nearest_index(border_pixels(picture), palette)
    counts = np.bincount(index, minlength=len(palette)) / len(index)
    names = list(palette)
    return {names[i]: float(counts[i]) for i in np.argsort(-counts, kind="stable")}


def object_mask(
    picture: NDArray[np.uint8], box: tuple[int, int, int, int], *, distance: float = 36.0
) -> NDArray[np.bool_]:
    """Which pixels inside a box belong to the thing in it, as [box height, box width].

    What lies behind is read off a ring around the box; a pixel belongs to the thing when it is
    further than `distance` (RGB, 0 to 441) from the ring's median colour. When almost nothing is
    (a thing in the colour of its background), the whole box counts.

    Args:
        box: (top, left, bottom, right) in pixels, bottom and right exclusive, at least 1 x 1.
    """
    height, width = picture.shape[:2]
    top, left, bottom, right = box
    margin = max(2, (bottom - top + right - left) // 16)
    ring = np.zeros((height, width), bool)
    ring[
        max(0, top - margin) : min(height, bottom + margin),
        max(0, left - margin) : min(width, right + margin),
    ] = True
    ring[top:bottom, left:right] = False
    around = picture[ring] if ring.any() else border_pixels(picture)
    behind = np.median(around.astype(np.float32), axis=0)
    inside = picture[top:bottom, left:right].astype(np.float32)
    mask = np.sqrt(((inside - behind) ** 2).sum(axis=-1)) > distance
    return mask if mask.mean() > 0.03 else np.ones_like(mask)
