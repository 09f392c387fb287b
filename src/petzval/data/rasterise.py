"""Draw one packaged picture as a square of premultiplied RGBA."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from petzval.errors import MissingExtraError

SPRITE_SIZE = 160
"""Height and width of every stored picture, in pixels."""

_RENDER_SIZE = 256
Pixels = NDArray[np.uint8]


def iconify_svg(icons: Mapping[str, Any], icon: str, *, paint: str = "#ffffff") -> str:
    """The SVG document of one icon of an Iconify set; `paint` stands in for `currentColor`."""
    entry = icons["icons"][icon]
    left, top = entry.get("left", 0), entry.get("top", 0)
    width = entry.get("width", icons.get("width", 16))
    height = entry.get("height", icons.get("height", 16))
    body = entry["body"].replace("currentColor", paint)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def draw_svg(svg: str) -> Pixels | None:
    """A picture [160, 160, 4] of an SVG document, or None if it cannot be drawn or is empty.

    Raises:
        MissingExtraError: resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtraError("resvg-py", "data") from error
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=_RENDER_SIZE, height=_RENDER_SIZE)
    except (ValueError, RuntimeError):
        return None
    return draw_bitmap(bytes(png))


def draw_bitmap(data: bytes) -> Pixels | None:
    """A picture [160, 160, 4] of PNG or WebP bytes, or None if they are damaged or empty."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return square(image.convert("RGBA"))
    except (OSError, UnidentifiedImageError, ValueError):
        return None


def square(image: Image.Image) -> Pixels | None:
    """Crop to what is visible, scale the longer side to 160, centre on a transparent square.

    Colours come back multiplied by alpha, so that scaling never drags in the colour of invisible
    pixels and pasting is one multiply and add.
    """
    box = image.getchannel("A").point([0] * 13 + [255] * 243).getbbox()
    if box is None:
        return None
    cropped = image.crop(box).convert("RGBa")
    scale = SPRITE_SIZE / max(cropped.size)
    width, height = (max(1, round(side * scale)) for side in cropped.size)
    resized = cropped.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    canvas = np.zeros((SPRITE_SIZE, SPRITE_SIZE, 4), np.uint8)
    top, left = (SPRITE_SIZE - height) // 2, (SPRITE_SIZE - width) // 2
    canvas[top : top + height, left : left + width] = np.frombuffer(
        resized.tobytes(), np.uint8
    ).reshape(height, width, 4)
    # Bicubic can overshoot: a premultiplied colour above its alpha would glow when pasted.
    np.minimum(canvas[..., :3], canvas[..., 3:], out=canvas[..., :3])
    return canvas


def visible_box(pixels: Pixels) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the pixels that can be seen; all zero if there are none."""
    mask = pixels[..., 3] > 12
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return (0, 0, 0, 0)
    top, left = int(rows[0]), int(columns[0])
    return (top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1)


def unpremultiply(pixels: Pixels) -> Pixels:
    """Straight RGBA of premultiplied RGBA, for viewers and colour measurements."""
    alpha = pixels[..., 3:].astype(np.float32)
    colour = pixels[..., :3].astype(np.float32) * 255 / np.maximum(alpha, 1)
    return np.concatenate([colour.clip(0, 255).round(), alpha], axis=-1).astype(np.uint8)
