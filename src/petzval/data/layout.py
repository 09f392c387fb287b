"""Where things go in a scene: boxes in pixels, from sizes and jitter drawn beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from petzval.resolution import Resolution

SpriteBox = tuple[int, int, int, int]


class Box(NamedTuple):
    """A rectangle in pixels of the scene; it may stick out by a rounding error only."""

    top: int
    left: int
    height: int
    width: int


def _fit(sprite: SpriteBox, longer: float, resolution: Resolution) -> tuple[int, int]:
    """Height and width of a picture whose longer side is `longer` pixels, within the scene."""
    _, _, height, width = sprite
    scale = longer / max(height, width, 1)
    scale = min(
        scale, 0.97 * resolution.height / max(height, 1), 0.97 * resolution.width / max(width, 1)
    )
    return max(1, round(height * scale)), max(1, round(width * scale))


def _centred(centre: tuple[float, float], size: tuple[int, int], resolution: Resolution) -> Box:
    """A box of `size` around `centre` (y, x), pushed inside the scene."""
    top = round(centre[0] - size[0] / 2)
    left = round(centre[1] - size[1] / 2)
    top = min(max(top, 0), max(resolution.height - size[0], 0))
    left = min(max(left, 0), max(resolution.width - size[1], 0))
    return Box(top, left, *size)


def place_single(
    resolution: Resolution,
    sprite: SpriteBox,
    size: float,
    cell: tuple[int, int],
    jitter: NDArray[np.float64],
    *,
    margin: float = 0.03,
) -> Box:
    """One thing in a cell of the 3 x 3 grid.

    Args:
        sprite: visible box of the picture, for its shape.
        size: longer side as a share of the scene's shorter one. In a long scene a large thing
            grows with the free room, up to 1.25 times.
        cell: (row, column); outer cells touch the margin.
        jitter: (y, x), each -1 to 1.
        margin: free share of the shorter side at the edges.
    """
    short = min(resolution.height, resolution.width)
    height, width = _fit(sprite, size * short, resolution)
    free = (resolution.height - height, resolution.width - width)
    edge = margin * short
    places: list[float] = []
    for room, position, shift in zip(free, cell, jitter, strict=True):
        start, end = min(edge, room / 2), max(room - edge, room / 2)
        offset = start + (end - start) * position / 2
        places.append(offset + float(shift) * min(0.04 * short, room / 2))
    centre = (places[0] + height / 2, places[1] + width / 2)
    return _centred(centre, (height, width), resolution)


def place_pair(
    resolution: Resolution,
    sprites: tuple[SpriteBox, SpriteBox],
    relation: str,
    sizes: NDArray[np.float64],
    jitter: NDArray[np.float64],
) -> tuple[Box, Box]:
    """Two things side by side or one above the other; `relation` is the first's to the second."""
    beside = relation in {"left of", "right of"}
    along = resolution.width if beside else resolution.height
    across = resolution.height if beside else resolution.width
    room = min(0.45 * along, 0.9 * across)
    first_at = 0.26 if relation in {"left of", "above"} else 0.74
    boxes: list[Box] = []
    for sprite, share, shift, at in zip(
        sprites, sizes, jitter, (first_at, 1 - first_at), strict=True
    ):
        size = _fit(sprite, float(share) * room, resolution)
        slack = 0.012 * along
        spot = at * along + float(shift[0]) * slack
        middle = across / 2 + float(shift[1]) * 0.08 * across
        centre = (middle, spot) if beside else (spot, middle)
        boxes.append(_centred(centre, size, resolution))
    return boxes[0], boxes[1]


def place_count(
    resolution: Resolution,
    sprite: SpriteBox,
    count: int,
    size: float,
    jitter: NDArray[np.float64],
) -> list[Box]:
    """`count` equal things in rows that fill the scene, none touching another."""
    rows = _rows(count, resolution)
    cell_height = resolution.height / len(rows)
    cell_width = resolution.width / max(rows)
    extent = size * min(cell_height, cell_width, 0.62 * min(resolution.height, resolution.width))
    height, width = _fit(sprite, extent, resolution)
    boxes: list[Box] = []
    for row, num_columns in enumerate(rows):
        for column in range(num_columns):
            shift = jitter[len(boxes)]
            y = (row + 0.5) * cell_height + float(shift[0]) * (cell_height - height) * 0.3
            x = (column + 0.5) * resolution.width / num_columns
            x += float(shift[1]) * (cell_width - width) * 0.3
            boxes.append(_centred((y, x), (height, width), resolution))
    return boxes


def _rows(count: int, resolution: Resolution) -> Sequence[int]:
    """Things per row: as few rows as keep the things large."""
    best: tuple[float, Sequence[int]] = (0.0, [count])
    for num_rows in range(1, count + 1):
        rows = [count // num_rows + (row < count % num_rows) for row in range(num_rows)]
        side = min(resolution.height / num_rows, resolution.width / max(rows))
        if side > best[0] * 1.01:
            best = (side, rows)
    return best[1]


def place_word(
    resolution: Resolution, num_letters: int, size: float, jitter: NDArray[np.float64]
) -> Box:
    """A line of letters across the middle; `size` is its share of the width."""
    width = size * resolution.width
    height = min(1.45 * width / max(num_letters, 2), 0.6 * resolution.height)
    centre = (
        resolution.height * (0.5 + 0.1 * float(jitter[0])),
        resolution.width * (0.5 + 0.03 * float(jitter[1])),
    )
    return _centred(centre, (max(8, round(height)), max(8, round(width))), resolution)
