"""A preview never holds up what it is a preview of."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from petzval.inference import preview, projection
from petzval.inference.pipeline import Pipeline
from petzval.inference.preview import LONGEST_SIDE, SmallPreviews, preview_pixels
from petzval.inference.projection import CACHE_VARIABLE, LatentProjection, fit
from petzval.models.vae import Autoencoder
from tests.support import PATIENCE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(projection, "_FIT_PICTURES", 2)
    monkeypatch.setattr(projection, "_FIT_SIDE", 64)


def _drawn(pipeline: Pipeline) -> list[bool]:
    events = pipeline.steps("a fox", size="64x48", steps=2, guidance=1.0)
    return [event.small_preview is not None for event in events]


def test_there_are_none_before_they_begin(pipeline: Pipeline) -> None:
    pipeline.moving.previews = SmallPreviews(lambda: pipeline.autoencoder)
    assert _drawn(pipeline) == [False, False]
    assert not pipeline.moving.previews.wait()


def test_drawing_goes_on_while_a_projection_is_fitted(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()

    def slow(autoencoder: Autoencoder) -> LatentProjection:
        may_go_on.wait(PATIENCE)
        return fit(autoencoder)

    monkeypatch.setattr(preview, "make_projection", slow)
    pipeline.moving.previews = SmallPreviews(lambda: pipeline.autoencoder)
    pipeline.moving.previews.begin()
    pipeline.moving.previews.begin()
    assert _drawn(pipeline) == [False, False]
    may_go_on.set()
    assert pipeline.moving.previews.wait(PATIENCE)
    assert _drawn(pipeline) == [True, True]


def test_the_second_time_it_is_found(pipeline: Pipeline) -> None:
    first = SmallPreviews(lambda: pipeline.autoencoder)
    first.begin()
    assert first.wait(PATIENCE)
    second = SmallPreviews(lambda: pipeline.autoencoder)
    second.begin()
    assert second._fitting is None
    assert second.wait()


def test_a_fit_that_fails_is_told_to_the_log_and_pictures_are_made(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(autoencoder: Autoencoder) -> LatentProjection:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(preview, "make_projection", broken)
    pipeline.moving.previews = SmallPreviews(lambda: pipeline.autoencoder)
    with caplog.at_level(logging.ERROR, "petzval.inference.preview"):
        pipeline.moving.previews.begin()
        assert not pipeline.moving.previews.wait(PATIENCE)
    assert "the device is gone" in caplog.text
    assert _drawn(pipeline) == [False, False]


@pytest.mark.parametrize(("grid", "size"), [((4, 6), (32, 48)), ((64, 36), (256, 144))])
def test_no_preview_is_longer_than_the_limit(grid: tuple[int, int], size: tuple[int, int]) -> None:
    channels = 4
    projection = LatentProjection(
        weight=torch.zeros(48, channels, 3, 3),
        bias=torch.zeros(48),
        mean=torch.zeros(4 * channels),
        variance=torch.ones(4 * channels),
        eps=0.0,
    )
    pixels = preview_pixels(projection, torch.zeros(1, grid[0] * grid[1], 4 * channels), grid)
    assert pixels.shape == (1, *size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 127).all()
    assert max(size) <= LONGEST_SIDE
