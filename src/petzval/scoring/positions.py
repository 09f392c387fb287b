"""Words for where something is: the nine cells of a 3x3 grid over a picture."""

from __future__ import annotations

POSITIONS: tuple[str, ...] = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""Cells in reading order: row 0 is the top."""


def position_of(centre: tuple[float, float], height: int, width: int) -> str:
    """The cell that holds a point.

    Args:
        centre: (y, x) in pixels from the top left corner.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """
    row = min(2, max(0, int(3 * centre[0] / height)))
    column = min(2, max(0, int(3 * centre[1] / width)))
    return POSITIONS[3 * row + column]
