from __future__ import annotations

import numpy as np
import torch

from petzval.scoring.cutouts import cut_out, disturb, paste, soften, to_tensor
from tests.scoring.shapes import ShapeData, scene_of


def test_a_cut_out_is_the_thing_in_its_middle() -> None:
    scene = scene_of(("square", "red", (40, 60)), side=32)
    one = cut_out(to_tensor(scene.picture), scene.objects[0].box, 48)
    assert one.shape == (3, 48, 48)
    red = (one[0] > 0.7) & (one[1] < 0.4)
    assert 0.75 < red.float().mean() < 0.9
    assert bool(red[24, 24])


def test_a_cut_out_at_the_edge_repeats_the_edge() -> None:
    scene = scene_of(("square", "red", (0, 0)), background="white", side=32)
    one = cut_out(to_tensor(scene.picture), (0, 0, 32, 8), 48)
    assert one.shape == (3, 48, 48)
    assert float(one[1, :40, 0].max()) < 0.4


def test_a_read_only_picture_is_copied() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    picture.setflags(write=False)
    tensor = to_tensor(picture)
    tensor += 1
    assert picture.max() == 0
    assert tensor.shape == (3, 4, 6)


def test_a_tiny_box_still_gives_a_cut_out() -> None:
    picture = torch.rand(3, 20, 20)
    assert cut_out(picture, (19, 19, 20, 20), 32).shape == (3, 32, 32)


def test_pasting_paints_the_mask_and_shows_the_ground() -> None:
    data = ShapeData()
    pasted = paste(data.pixels(1), (0, 0, 255), (255, 0, 0))
    np.testing.assert_allclose(pasted[:, 1, 1], [0, 0, 1])
    np.testing.assert_allclose(pasted[:, 24, 44], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(pasted[:, 24, 24], [0, 0, 1])


def test_disturbing_is_bounded_and_repeatable() -> None:
    cutouts = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    one = disturb(cutouts, 32, torch.Generator().manual_seed(1))
    assert one.shape == (6, 3, 32, 32)
    assert float(one.min()) >= 0 and float(one.max()) <= 1
    assert torch.equal(one, disturb(cutouts, 32, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, disturb(cutouts, 32, torch.Generator().manual_seed(2)))


def test_softening_keeps_the_size_and_the_mean() -> None:
    pictures = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    soft = soften(pictures, torch.Generator().manual_seed(0), smallest=0.2, grain=0.0)
    assert soft.shape == pictures.shape
    torch.testing.assert_close(soft.mean(), pictures.mean(), atol=0.01, rtol=0)
