"""Which colours can be seen on which; the names themselves are shared with the scorers."""

from __future__ import annotations

from functools import cache

import numpy as np

from petzval.scoring.colours import (
    BACKGROUND_COLOURS,
    OBJECT_COLOURS,
    RGB,
    dominant_colour,
    name_pixels,
    nearest_name,
)

__all__ = [
    "BACKGROUND_COLOURS",
    "OBJECT_COLOURS",
    "RGB",
    "clash",
    "contrasting",
    "dominant_colour",
    "name_pixels",
    "nearest_name",
]


@cache
def clash(colour: str, background: str) -> bool:
    """Whether a thing of this colour would hardly be seen on this background."""
    difference = np.subtract(OBJECT_COLOURS[colour], BACKGROUND_COLOURS[background])
    same = background in {colour, f"light {colour}"}
    return same or float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))) < 48


def contrasting(colour: str) -> list[str]:
    """Background colours on which a thing of this colour is well seen."""
    return [background for background in BACKGROUND_COLOURS if not clash(colour, background)]
