"""Drawing one picture: cropped, centred, premultiplied, and None for what cannot be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from petzval.data.rasterise import (
    SPRITE_SIZE,
    draw_bitmap,
    draw_svg,
    iconify_svg,
    square,
    unpremultiply,
    visible_box,
)
from tests.data.small_library import png


def test_a_picture_fills_its_square_and_sits_in_the_middle() -> None:
    pixels = draw_bitmap(png((200, 30, 30), "box"))
    assert pixels is not None and pixels.shape == (SPRITE_SIZE, SPRITE_SIZE, 4)
    top, left, height, width = visible_box(pixels)
    assert (left, width) == (0, SPRITE_SIZE)
    assert abs(top + height / 2 - SPRITE_SIZE / 2) <= 1
    assert 0.2 < height / width < 0.4


def test_colours_are_multiplied_by_alpha_and_never_above_it() -> None:
    image = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    image.paste((200, 100, 50, 128), (10, 10, 30, 30))
    pixels = square(image)
    assert pixels is not None
    assert (pixels[..., :3] <= pixels[..., 3:]).all()
    middle = pixels[80, 80]
    assert np.abs(middle.astype(int) - (100, 50, 25, 128)).max() <= 2
    # The invisible white around it never shows: straight colours are the paint's everywhere.
    straight = unpremultiply(pixels)[80, 80]
    assert np.abs(straight.astype(int) - (200, 100, 50, 128)).max() <= 3


def test_what_cannot_be_drawn_is_none() -> None:
    assert draw_bitmap(b"no picture") is None
    assert draw_bitmap(png((1, 2, 3))[:60]) is None
    assert square(Image.new("RGBA", (8, 8))) is None
    assert visible_box(np.zeros((4, 4, 4), np.uint8)) == (0, 0, 0, 0)


def test_an_icon_keeps_its_own_frame_and_takes_the_paint() -> None:
    icons = {
        "width": 16,
        "icons": {"a": {"body": '<path fill="currentColor" d="M0 0h8v8z"/>', "height": 20}},
    }
    svg = iconify_svg(icons, "a", paint="#123456")
    assert 'viewBox="0 0 16 20"' in svg
    assert 'fill="#123456"' in svg and "currentColor" not in svg


def test_vectors_are_drawn() -> None:
    pytest.importorskip("resvg_py", reason="the extra 'data' is not installed")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10" viewBox="0 0 10 10">'
        '<rect x="2" y="4" width="6" height="3" fill="#ff0000"/></svg>'
    )
    pixels = draw_svg(svg)
    assert pixels is not None
    assert tuple(pixels[80, 80]) == (255, 0, 0, 255)
    assert visible_box(pixels)[3] == SPRITE_SIZE
    assert draw_svg("<svg") is None
    assert draw_svg('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>') is None
