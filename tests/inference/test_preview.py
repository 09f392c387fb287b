"""A preview never holds up what it is a preview of."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from petzval.inference.pipeline import Pipeline
from petzval.inference.preview import LONGEST_SIDE, PreviewStream, preview_pixels
from petzval.inference.projection import CACHE_VARIABLE, fit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))


class Post:
    """Collects what is delivered, and can make the thread wait."""

    def __init__(self) -> None:
        self.letters: list[tuple[Hashable, int, bytes]] = []
        self.arrived = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, key: Hashable, row: int, png: bytes) -> None:
        self.letters.append((key, row, png))
        self.arrived.release()
        self.may_go_on.wait(10)


def _tokens(pipeline: Pipeline, value: float, num: int = 1) -> Tensor:
    return torch.full((num, 12, pipeline.denoiser.config.in_channels), value)


def test_steps_are_delivered_as_small_png(pipeline: Pipeline) -> None:
    post = Post()
    stream = PreviewStream(pipeline.autoencoder, post)
    for event in pipeline.steps("a fox", size="64x48", steps=2, guidance=1.0):
        stream.offer("job", event.estimate, event.grid)
        assert post.arrived.acquire(timeout=30)
    stream.close()
    assert [(key, row) for key, row, _ in post.letters] == [("job", 0), ("job", 0)]
    with Image.open(io.BytesIO(post.letters[-1][2])) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (32, 24), "RGB")


def test_an_offer_returns_at_once_and_the_newest_wins(pipeline: Pipeline) -> None:
    post = Post()
    post.may_go_on.clear()
    stream = PreviewStream(pipeline.autoencoder, post)
    stream.offer("a", lambda: _tokens(pipeline, 0.0), (3, 4))
    assert post.arrived.acquire(timeout=30)  # the thread is inside the first delivery, and waits
    calls: list[float] = []

    def newer(value: float) -> Tensor:
        calls.append(value)
        return _tokens(pipeline, value)

    start = time.perf_counter()
    for value in range(200):
        stream.offer("a", lambda value=float(value): newer(value), (3, 4))
    stream.offer("b", lambda: _tokens(pipeline, 0.5, 2), (3, 4))
    stream.offer("c", lambda: _tokens(pipeline, 0.5), (3, 4))
    stream.forget("c")
    stream.forget("unknown")
    assert time.perf_counter() - start < 1.0
    post.may_go_on.set()
    for _ in range(3):
        assert post.arrived.acquire(timeout=30)
    stream.close()
    assert calls == [199.0]
    assert [(key, row) for key, row, _ in post.letters] == [("a", 0), ("a", 0), ("b", 0), ("b", 1)]


def test_a_preview_that_fails_is_told_to_the_log_and_the_next_one_comes(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Tensor:
        raise RuntimeError("the device is gone")

    post = Post()
    stream = PreviewStream(pipeline.autoencoder, post)
    with caplog.at_level(logging.ERROR, "petzval.inference.preview"):
        stream.offer("a", broken, (3, 4))
        stream.offer("b", lambda: _tokens(pipeline, 0.0), (3, 4))
        assert post.arrived.acquire(timeout=30)
    stream.close()
    assert [key for key, _, _ in post.letters] == ["b"]
    assert "the device is gone" in caplog.text


def test_a_closed_stream_is_deaf(pipeline: Pipeline) -> None:
    post = Post()
    stream = PreviewStream(pipeline.autoencoder, post)
    stream.close()
    stream.close()
    stream.offer("a", lambda: _tokens(pipeline, 0.0), (3, 4))
    assert not post.letters
    assert not stream._thread.is_alive()


@pytest.mark.parametrize(("grid", "size"), [((4, 6), (32, 48)), ((64, 36), (256, 144))])
def test_no_preview_is_longer_than_the_limit(
    pipeline: Pipeline, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    channels = pipeline.denoiser.config.in_channels
    tokens = torch.zeros(1, grid[0] * grid[1], channels)
    pixels = preview_pixels(fit(pipeline.autoencoder), tokens, grid)
    assert pixels.shape == (1, *size, 3)
    assert pixels.dtype == np.uint8
    assert max(size) <= LONGEST_SIDE
