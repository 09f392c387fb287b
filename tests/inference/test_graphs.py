"""Recorded calls: which are kept, and that they give what the denoiser gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from petzval.inference.graphs import Function, GraphCache, GraphedDenoiser
from petzval.inference.pipeline import Pipeline

SMALL: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 3.0}


class Recorder:
    """In place of CUDA: calls the function again, and remembers what was asked of it."""

    def __init__(self) -> None:
        self.captured: list[tuple[int, ...]] = []
        self.released: list[tuple[int, ...]] = []
        self.replays = 0

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recorded:
        self.captured.append(tuple(inputs[0].shape))
        return Recorded(self, function, tuple(inputs[0].shape))


class Recorded:
    def __init__(self, owner: Recorder, function: Function, shape: tuple[int, ...]) -> None:
        self.owner, self.function, self.shape = owner, function, shape

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        self.owner.replays += 1
        return self.function(*inputs)

    def release(self) -> None:
        self.owner.released.append(self.shape)


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_one_graph_a_size_and_the_longest_unused_goes_first() -> None:
    recorder = Recorder()
    cache = GraphCache(double, capacity=2, capture=recorder)
    for size in (3, 4, 3, 5, 3, 4):
        assert torch.equal(cache(torch.ones(size)), torch.full((size,), 2.0))
    assert recorder.captured == [(3,), (4,), (5,), (4,)]
    assert recorder.released == [(4,), (5,)]
    assert recorder.replays == 6
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0
    assert sorted(recorder.released[2:]) == [(3,), (4,)]


def test_types_are_told_apart_and_a_failed_recording_leaves_nothing() -> None:
    recorder = Recorder()
    cache = GraphCache(double, capacity=4, capture=recorder)
    cache(torch.ones(3))
    cache(torch.ones(3, dtype=torch.float64))
    assert len(cache) == 2

    def fail(function: Function, inputs: Sequence[Tensor]) -> Recorded:
        raise RuntimeError("no memory")

    broken = GraphCache(double, capture=fail)
    with pytest.raises(RuntimeError, match="no memory"):
        broken(torch.ones(3))
    assert len(broken) == 0
    with pytest.raises(ValueError, match="one graph at least"):
        GraphCache(double, capacity=0)


def test_pictures_through_recorded_calls_are_the_same_bytes(pipeline: Pipeline) -> None:
    plain = pipeline.generate("a red fox", num_images=2, **SMALL)
    recorder = Recorder()
    pipeline.graphs = GraphedDenoiser(pipeline.denoiser, capture=recorder)
    try:
        recorded = pipeline.generate("a red fox", num_images=2, **SMALL)
    finally:
        pipeline.graphs = None
    assert [image.encode() for image in recorded] == [image.encode() for image in plain]
    assert len(recorder.captured) == 2  # with text and without
    assert recorder.replays == 2 * 2 * 2


def test_large_pictures_are_not_recorded(pipeline: Pipeline) -> None:
    recorder = Recorder()
    pipeline.graphs = GraphedDenoiser(pipeline.denoiser, max_tokens=11, capture=recorder)
    try:
        pipeline.generate("a red fox", **SMALL)  # 12 tokens
    finally:
        pipeline.graphs = None
    assert recorder.captured == []


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_graphs_of_two_sizes_in_a_cache_of_one(golden_checkpoint: str) -> None:
    drawer = Pipeline.load(golden_checkpoint, device="cuda", dtype="bfloat16")
    sizes = ("64x48", "48x64", "64x48")
    asked: list[dict[str, Any]] = [SMALL | {"size": size} for size in sizes]
    plain = [drawer.generate("a red fox", **options)[0] for options in asked]
    drawer.graphs = GraphedDenoiser(drawer.denoiser, capacity=1)
    recorded = [drawer.generate("a red fox", **options)[0] for options in asked]
    assert len(drawer.graphs.graphs) == 1
    for ours, theirs in zip(recorded, plain, strict=True):
        assert np.abs(ours.pixels.astype(int) - theirs.pixels.astype(int)).max() <= 1
