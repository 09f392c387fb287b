from __future__ import annotations

import numpy as np
import pytest

from petzval.scoring.colours import (
    BACKGROUND_COLOURS,
    OBJECT_COLOURS,
    background_shares,
    border_pixels,
    colour_shares,
    dominant_colour,
    name_pixels,
    nearest_name,
    object_mask,
)
from tests.scoring.shapes import scene_of


def test_every_paint_is_called_by_its_own_name() -> None:
    pixels = np.array(list(OBJECT_COLOURS.values()), np.uint8)
    names = list(OBJECT_COLOURS)
    assert [names[i] for i in name_pixels(pixels)] == names


def test_a_small_shift_of_a_background_keeps_its_name() -> None:
    rng = np.random.default_rng(0)
    for name, rgb in BACKGROUND_COLOURS.items():
        for _ in range(20):
            shifted = np.clip(np.array(rgb) + rng.integers(-5, 6, 3), 0, 255)
            assert nearest_name((int(shifted[0]), int(shifted[1]), int(shifted[2])),
                                BACKGROUND_COLOURS) == name  # fmt: skip


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((255, 204, 77), "yellow"), ((120, 10, 10), "red"), ((90, 60, 30), "brown"),
     ((180, 220, 255), "blue"), ((255, 180, 190), "pink"), ((0, 90, 30), "green")],
)  # fmt: skip
def test_shades_are_called_what_people_call_them(rgb: tuple[int, int, int], name: str) -> None:
    assert next(iter(colour_shares(np.array([rgb], np.uint8)))) == name


def test_shares_sum_to_one_and_are_ordered() -> None:
    pixels = np.array([OBJECT_COLOURS["red"]] * 3 + [OBJECT_COLOURS["blue"]], np.uint8)
    shares = colour_shares(pixels)
    assert list(shares)[:2] == ["red", "blue"]
    assert shares["red"] == 0.75
    assert sum(shares.values()) == pytest.approx(1)
    assert colour_shares(np.empty((0, 3), np.uint8)) == {}


def test_the_dominant_colour_needs_its_share() -> None:
    names = ("red", "blue", "green", "yellow")
    rgba = np.full((4, 4, 4), 255, np.uint8)
    for row, name in enumerate(names):
        rgba[row, :, :3] = OBJECT_COLOURS[name]
    assert dominant_colour(rgba) is None
    assert dominant_colour(rgba, share=0.2) in names
    rgba[..., 3] = 0
    assert dominant_colour(rgba, share=0.0) is None


def test_the_frame_tells_the_background_even_when_the_thing_is_large() -> None:
    scene = scene_of(("square", "red", (8, 8)), background="teal", side=112)
    shares = background_shares(scene.picture)
    assert next(iter(shares)) == "teal"
    assert shares["teal"] == 1.0
    assert len(border_pixels(scene.picture)) == 128 * 128 - 118 * 118


def test_the_mask_is_the_thing_without_its_background() -> None:
    scene = scene_of(("disc", "blue", (40, 40)), background="yellow", side=40)
    mask = object_mask(scene.picture, scene.objects[0].box)
    assert mask.mean() == pytest.approx(np.pi / 4, abs=0.05)


def test_an_invisible_thing_counts_as_its_whole_box() -> None:
    picture = np.full((64, 64, 3), 200, np.uint8)
    assert object_mask(picture, (10, 10, 30, 30)).all()


def test_a_box_that_fills_the_picture_still_has_a_mask() -> None:
    picture = np.full((32, 32, 3), 250, np.uint8)
    picture[8:24, 8:24] = (200, 0, 0)
    assert object_mask(picture, (0, 0, 32, 32)).sum() == 256
