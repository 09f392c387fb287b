from __future__ import annotations

import numpy as np
import pytest
import torch

from petzval.scoring.detector import (
    Detection,
    Detector,
    detect,
    detection_loss,
    network_size,
    overlap,
    targets_of,
)
from tests.scoring.shapes import scene_of


def test_the_detector_is_small() -> None:
    assert sum(p.numel() for p in Detector().parameters()) < 1_000_000


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (181, 362), (1024, 512), (16, 16)])
def test_the_network_sees_multiples_of_32_of_about_one_area(size: tuple[int, int]) -> None:
    height, width = network_size(*size)
    assert height % 32 == width % 32 == 0
    assert 0.7 < height * width / 128**2 < 1.4


def perfect(boxes: list[tuple[int, int, int, int]], height: int, width: int) -> torch.Tensor:
    """Outputs of a network that makes no mistake."""
    targets = targets_of(boxes, height, width)
    logits = torch.where(targets.here > 0, 10.0, -10.0)
    return torch.cat([logits[None], targets.sizes])


class Oracle(Detector):
    """Answers with `outputs`, whatever it is shown."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__(8)
        self.outputs = outputs

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.outputs[None]


def test_targets_and_reading_are_inverse() -> None:
    boxes = [(4, 8, 41, 60), (70, 61, 121, 110)]
    picture = np.zeros((128, 128, 3), np.uint8)
    found = detect(Oracle(perfect(boxes, 128, 128)), picture, threshold=0.5)
    assert sorted(one.pixels(128, 128) for one in found) == boxes


def test_boxes_come_back_at_the_pictures_own_size() -> None:
    boxes = [(16, 16, 48, 80)]
    picture = np.zeros((256, 512, 3), np.uint8)
    height, width = network_size(256, 512)
    found = detect(Oracle(perfect(boxes, height, width)), picture, threshold=0.5)
    assert found[0].box == pytest.approx(
        (16 * 256 / height, 16 * 512 / width, 48 * 256 / height, 80 * 512 / width)
    )


def test_a_perfect_answer_has_a_smaller_loss_than_an_empty_or_a_shifted_one() -> None:
    boxes = [(20, 20, 60, 60), (70, 80, 110, 120)]
    targets = [targets_of(boxes, 128, 128)]
    right = perfect(boxes, 128, 128)
    empty = torch.full_like(right, -10.0)
    shifted = right.roll(8, dims=2)
    losses = [detection_loss(one[None], targets).item() for one in (right, empty, shifted)]
    assert losses[0] < 0.01
    assert min(losses[1:]) > 1


def test_a_picture_without_things_has_a_finite_loss() -> None:
    network = Detector(8)
    loss = detection_loss(network(torch.rand(1, 3, 64, 64)), [targets_of([], 64, 64)])
    loss.backward()
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None
    )


def test_a_box_inside_another_overlaps_wholly() -> None:
    outer = Detection(box=(0.0, 0.0, 10.0, 10.0), confidence=0.9)
    inner = Detection(box=(2.0, 2.0, 6.0, 6.0), confidence=0.8)
    apart = Detection(box=(20.0, 20.0, 30.0, 30.0), confidence=0.8)
    assert overlap(outer, inner) == 1
    assert overlap(outer, apart) == 0


def test_pixels_stay_inside_the_picture() -> None:
    box = Detection(box=(-5.0, 90.0, 3.0, 140.0), confidence=1.0)
    assert box.pixels(64, 100) == (0, 90, 3, 100)
    speck = Detection(box=(63.9, 99.9, 63.95, 99.95), confidence=1.0)
    top, left, bottom, right = speck.pixels(64, 100)
    assert bottom > top and right > left and bottom <= 64 and right <= 100


def test_detection_is_deterministic() -> None:
    torch.manual_seed(0)
    network = Detector(8).eval()
    picture = scene_of(("disc", "red", (20, 30))).picture
    first = detect(network, picture, threshold=0.0)
    assert first == detect(network, picture, threshold=0.0)
