"""A visible mark: a small caption in the lower right corner that says what a picture is.

It is drawn after the networks are done, and it can be cut away: an honest label for people who
look, no protection. The recipe names it, so that the same picture can be made again.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from petzval.errors import RequestError

MAX_CHARACTERS = 40

_SHARE_OF_SIDE = 1 / 32
_SMALLEST, _LARGEST = 8, 48
"""Sizes of the letters, in pixels: below, nobody can read them."""

_PLATE, _INK = (0, 0, 0, 128), (255, 255, 255, 235)


def check_mark(text: str) -> str:
    """The words of a mark as they are drawn, blanks around them left out; "" for none.

    Raises:
        RequestError: too long, or with characters that the built-in font does not have.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        raise RequestError(
            f"the mark has {len(text):,} characters, at most {MAX_CHARACTERS} are drawn",
            "shorten it",
        )
    strange = [letter for letter in text if not " " <= letter <= "~"]
    if strange:
        raise RequestError(
            f"the mark holds {ascii(strange[0])}, which the built-in font does not have",
            "write it in plain Latin letters, such as: made by AI",
        )
    return text


def check_room(text: str, height: int, width: int) -> None:
    """Refuse a mark that would not fit into a picture, before it is drawn.

    Raises:
        RequestError: even the smallest letters are too wide.
    """
    if text and _size_for(text, height, width) is None:
        raise RequestError(
            f"the mark {text!r} does not fit into a picture of {width}x{height}",
            "shorten it, or ask for a larger picture",
        )


def marked(
    pixels: UInt8[np.ndarray, "height width 3"], text: str
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture with a mark; the picture itself where the text is blank.

    Args:
        text: as `check_mark` returns it.

    Raises:
        RequestError: as `check_room`.
    """
    if not text:
        return pixels
    height, width = pixels.shape[:2]
    check_room(text, height, width)
    size = _size_for(text, height, width)
    assert size is not None
    plate = _plate(text, size)
    margin = _margin(size)
    picture = Image.fromarray(pixels).convert("RGBA")
    picture.alpha_composite(plate, (width - plate.width - margin, height - plate.height - margin))
    return np.asarray(picture.convert("RGB"))


@lru_cache(maxsize=64)
def _size_for(text: str, height: int, width: int) -> int | None:
    """The size of the letters; None where not even the smallest fit."""
    wanted = round(min(height, width) * _SHARE_OF_SIDE)
    for size in range(min(max(wanted, _SMALLEST), _LARGEST), _SMALLEST - 1, -1):
        plate, room = _plate(text, size), 2 * _margin(size)
        if plate.width + room <= width and plate.height + room <= height:
            return size
    return None


def _margin(size: int) -> int:
    return size // 4


@lru_cache(maxsize=64)
def _plate(text: str, size: int) -> Image.Image:
    """The caption on its ground, [height, width] as the letters need; never changed in place."""
    font = _font(size)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    across, down = size // 2, size // 5
    plate = Image.new(
        "RGBA", (round(right - left) + 2 * across, ascent + descent + 2 * down), (0, 0, 0, 0)
    )
    draw = ImageDraw.Draw(plate)
    box = (0, 0, plate.width - 1, plate.height - 1)
    draw.rounded_rectangle(box, radius=size // 3, fill=_PLATE)
    letters = Image.new("RGBA", plate.size, (*_INK[:3], 0))
    ImageDraw.Draw(letters).text((across - left, down), text, font=font, fill=_INK)
    plate.alpha_composite(letters)
    return plate


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RequestError(
            "this Pillow was built without FreeType, and cannot draw a mark", "leave --mark out"
        )
    return font
