"""Scenes, canvases and pictures of the miniature world."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petzval.data.miniature.world import (
    GREY,
    LARGE,
    PAINT,
    SMALL,
    TALL,
    WIDE,
    Canvas,
    Freedom,
    Scene,
    Thing,
    all_scenes,
    draw,
    draw_all,
    free,
    outline,
    to_pictures,
    to_tokens,
)
from petzval.errors import DataError

CANVASES = (SMALL, LARGE, WIDE, TALL, Canvas(height=24, width=24))
RED = Thing(colour="red", shape="square", place="top left")
RING = Thing(colour="blue", shape="ring", place="bottom right")


def test_there_are_as_many_scenes_as_counting_says_and_none_twice() -> None:
    for count, expected in ((1, 4 * 12), (2, 6 * 12**2), (3, 4 * 12**3)):
        scenes = all_scenes(count)
        assert len(scenes) == len(set(scenes)) == expected


@pytest.mark.parametrize("canvas", CANVASES, ids=str)
def test_the_same_numbers_draw_the_same_pictures(canvas: Canvas) -> None:
    scenes = all_scenes(2)[:40]
    first, freedoms = draw_all(scenes, canvas, np.random.default_rng(3))
    again, _ = draw_all(scenes, canvas, np.random.default_rng(3))
    other, _ = draw_all(scenes, canvas, np.random.default_rng(4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all(GREY[0] <= each.grey <= GREY[1] for each in freedoms)
    assert first.abs().max() <= 1


def test_a_thing_stands_where_it_is_said_to_and_nowhere_else() -> None:
    picture = draw(Scene((RED, RING)), SMALL, Freedom(0.25, ((0, 1), (1, 0))))
    window = picture[:, 0:5, 1:6]
    assert torch.equal(window, torch.tensor(PAINT["red"])[:, None, None].expand(3, 5, 5))
    ring = picture[:, 7:12, 6:11]
    assert torch.equal(ring[:, 2, 2], torch.full((3,), 0.25))
    assert torch.equal(ring[:, 0, 4], torch.tensor(PAINT["blue"]))
    picture[:, 0:5, 1:6] = 0.25
    picture[:, 7:12, 6:11] = 0.25
    assert torch.equal(picture, torch.full_like(picture, 0.25))


def test_outlines_are_all_different_at_every_size() -> None:
    for side in (5, 7, 11):
        areas = [int(outline(shape, side).sum()) for shape in ("square", "ring", "cross")]
        assert areas == [side**2, 4 * (side - 1), 2 * side - 1]


def test_every_offset_is_drawn_and_a_thing_never_leaves_its_cell() -> None:
    for canvas in CANVASES:
        rng = np.random.default_rng(0)
        seen = {free(Scene((RED,)), canvas, rng).offsets[0] for _ in range(600)}
        assert seen == set(canvas.offsets)
        height, width = canvas.cell
        assert all(down + canvas.side <= height for down, _ in seen)
        assert all(right + canvas.side <= width for _, right in seen)


@pytest.mark.parametrize("canvas", CANVASES, ids=str)
def test_tokens_and_pictures_are_two_ways_to_write_the_same(canvas: Canvas) -> None:
    pictures, _ = draw_all(all_scenes(1), canvas, np.random.default_rng(0))
    tokens = to_tokens(pictures)
    assert tokens.shape == (48, canvas.num_tokens, 27)
    assert torch.equal(to_pictures(tokens, canvas), pictures)
    assert Canvas.of_grid(canvas.grid) == canvas


@pytest.mark.parametrize(("height", "width"), [(6, 12), (12, 13), (0, 12), (12, -12), (15, 12)])
def test_a_canvas_that_cannot_be_divided_is_refused(height: int, width: int) -> None:
    with pytest.raises(DataError, match=f"{height} x {width}"):
        Canvas(height=height, width=width)


@pytest.mark.parametrize("things", [(), (RED, RED), (RING, RED)], ids=["none", "twice", "order"])
def test_a_scene_that_cannot_be_is_refused(things: tuple[Thing, ...]) -> None:
    with pytest.raises(DataError, match="a scene cannot have things at"):
        Scene(things)
