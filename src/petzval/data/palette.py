"""Named colours: what a caption calls a colour, and which name a measured colour gets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
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


@cache
def clash(colour: str, background: str) -> bool:
    """Whether a thing of this colour would hardly be seen on this background."""
    difference = np.subtract(OBJECT_COLOURS[colour], BACKGROUND_COLOURS[background])
    same = background in {colour, f"light {colour}"}
    return same or float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))) < 48


def contrasting(colour: str) -> list[str]:
    """Background colours on which a thing of this colour is well seen."""
    return [background for background in BACKGROUND_COLOURS if not clash(colour, background)]


def nearest_name(rgb: RGB, palette: Mapping[str, RGB]) -> str:
    """Name of the palette colour nearest to `rgb`, by redmean distance (weighted RGB)."""

    def distance(other: RGB) -> float:
        mean = (rgb[0] + other[0]) / 2
        red, green, blue = (float(a - b) ** 2 for a, b in zip(rgb, other, strict=True))
        return (2 + mean / 256) * red + 4 * green + (2 + (255 - mean) / 256) * blue

    return min(palette, key=lambda name: distance(palette[name]))


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


def dominant_colour(rgba: NDArray[np.uint8], *, share: float = 0.3) -> str | None:
    """The colour name that covers the most of a picture's mask, or None below `share` of it.

    Args:
        rgba: [height, width, 4], premultiplied or not: only nearly opaque pixels are counted.
        share: smallest fraction of the mask, 0 to 1, that makes a colour worth naming.
    """
    opaque = rgba[rgba[..., 3] > 200][:, :3]
    if len(opaque) == 0:
        return None
    counts = np.bincount(name_pixels(opaque), minlength=len(OBJECT_COLOURS))
    best = int(counts.argmax())
    return list(OBJECT_COLOURS)[best] if counts[best] >= share * len(opaque) else None
