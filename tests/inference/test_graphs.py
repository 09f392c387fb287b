"""Recorded calls: which are kept, and that they give what the denoiser gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from petzval.inference import compile as compiling
from petzval.inference import graphs, planning
from petzval.inference.graphs import Function, GraphCache, GraphedDenoiser
from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import Placement
from petzval.inference.request import GenerationRequest
from petzval.inference.terms import Budget
from petzval.kernels import cuda_graph, dispatch
from petzval.models.rope import mmdit_rope
from tests.support import QUICK_TO_READ

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


def test_types_are_told_apart_and_a_cache_needs_room() -> None:
    recorder = Recorder()
    cache = GraphCache(double, capacity=4, capture=recorder)
    cache(torch.ones(3))
    cache(torch.ones(3, dtype=torch.float64))
    assert len(cache) == 2
    with pytest.raises(ValueError, match="one graph at least"):
        GraphCache(double, capacity=0)


def test_a_recording_that_fails_is_told_once_and_the_function_goes_on() -> None:
    tried: list[int] = []

    def fail(function: Function, inputs: Sequence[Tensor]) -> Recorded:
        tried.append(len(inputs[0]))
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    cache = GraphCache(double, capture=fail)
    with pytest.warns(UserWarning, match="left out from here on: operation not permitted"):
        assert torch.equal(cache(torch.ones(3)), torch.full((3,), 2.0))
    assert torch.equal(cache(torch.ones(3)), torch.full((3,), 2.0))
    assert torch.equal(cache(torch.ones(4)), torch.full((4,), 2.0))
    assert tried == [3]
    assert len(cache) == 0


def test_a_size_is_recorded_when_it_was_called_some_times() -> None:
    """Recording costs a few calls: prompts of ever new lengths never pay for it."""
    recorder = Recorder()
    cache = GraphCache(double, patience=2, capture=recorder)
    for size in (3, 4, 5, 3, 3, 3):
        assert torch.equal(cache(torch.ones(size)), torch.full((size,), 2.0))
    assert recorder.captured == [(3,)]
    assert recorder.replays == 2


def test_nothing_is_replayed_where_the_slow_truth_is_asked_for(pipeline: Pipeline) -> None:
    recorder = Recorder()
    calls = graphed(pipeline, recorder)
    tokens = torch.randn(1, 12, pipeline.denoiser.config.in_channels)
    [step] = pipeline.denoiser.modulations(torch.tensor([0.5]))
    rope = mmdit_rope((4, 3), 0, pipeline.denoiser.config.axes_dims_rope)
    for block in (dispatch.reference, dispatch.portable):
        with block():
            calls(tokens, None, step, rope)
    assert recorder.captured == []
    calls(tokens, None, step, rope)
    assert len(recorder.captured) == 1


def test_a_pipeline_records_by_itself_where_the_device_does(
    golden_checkpoint: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And forgets what it recorded where the numbers behind it change."""
    assert pipeline.graphs.max_tokens == 0  # a CPU
    monkeypatch.setattr(graphs, "graphs_ready", lambda device: (True, "as if"))
    drawer = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32")
    assert drawer.graphs.max_tokens == graphs.MAX_TOKENS
    assert drawer.graphs.graphs.patience > 0
    recorder = Recorder()
    drawer.graphs = graphed(drawer, recorder)
    drawer.generate("a red fox", **SMALL)
    assert len(drawer.graphs.graphs) == 2
    compiling.compile_for(drawer, drawer.plan("a red fox", **SMALL), asked=False)
    assert len(drawer.graphs.graphs) == 2


def test_a_plan_records_where_all_stays_and_there_is_room(
    golden_checkpoint: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And forgets it where the weights go: they come back in another place."""
    monkeypatch.setattr(graphs, "graphs_ready", lambda device: (True, "as if"))
    monkeypatch.setattr(planning, "measured_speeds", lambda *machine: QUICK_TO_READ)
    request = GenerationRequest(prompt="a red fox", **SMALL)
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "request": request}
    roomy = Pipeline.load(golden_checkpoint, memory="8GB", **options)
    assert roomy.placement is not None and roomy.terms is not None
    assert roomy.graphs.max_tokens == graphs.MAX_TOKENS
    recorder = Recorder()
    roomy.graphs = graphed(roomy, recorder)
    [expected] = pipeline.generate(request)
    assert roomy.generate(request)[0].encode() == expected.encode()
    assert recorder.replays > 0
    roomy.put_out()
    assert len(roomy.graphs.graphs) == 0
    assert roomy.generate(request)[0].encode() == expected.encode()
    assert len(recorder.captured) == 4
    more: dict[str, Any] = {**SMALL, "size": "64x64"}  # was not planned for, and there is room
    roomy.generate("a red fox", **more)
    assert len(recorder.captured) == 6 and len(roomy.graphs.graphs) == 4
    recorded = recorder.replays
    assert roomy.terms.concurrent is not None
    close = Budget(memory=roomy.terms.concurrent.needs.peak_at_once())
    roomy._residency.terms = replace(roomy.terms, limits=close)
    more = {**SMALL, "size": "80x64"}
    roomy.generate("a red fox", **more)
    assert recorder.replays == recorded and len(roomy.graphs.graphs) == 0
    goes = next(each for each in _placements(roomy, request) if not each.stays)
    assert roomy.planning is not None
    roomy._adopt(roomy.planning.follow(goes))
    assert roomy.graphs.max_tokens == 0


def _placements(pipeline: Pipeline, request: GenerationRequest) -> list[Placement]:
    assert pipeline.planning is not None
    return pipeline.planning.planner(pipeline.planning.work(pipeline.plan(request)), 0).placements


def test_the_switch_says_why_calls_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_graph.SWITCH, "0")
    assert cuda_graph.graphs_ready(torch.device("cuda")) == (False, "PETZVAL_GRAPHS is 0")
    assert "this is cpu" in cuda_graph.graphs_ready(torch.device("cpu"))[1]
    monkeypatch.delenv(cuda_graph.SWITCH)
    assert cuda_graph.graphs_ready(torch.device("cuda"))[0] == (torch.version.hip is None)


def graphed(pipeline: Pipeline, recorder: Recorder, **options: Any) -> GraphedDenoiser:
    return GraphedDenoiser(pipeline.denoiser, capture=recorder, **{"patience": 0} | options)


def test_pictures_through_recorded_calls_are_the_same_bytes(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pipeline.generate("a red fox", num_images=2, **SMALL)
    recorder = Recorder()
    monkeypatch.setattr(pipeline, "graphs", graphed(pipeline, recorder))
    recorded = pipeline.generate("a red fox", num_images=2, **SMALL)
    assert [image.encode() for image in recorded] == [image.encode() for image in plain]
    assert len(recorder.captured) == 2  # with text and without
    assert recorder.replays == 2 * 2 * 2


def test_large_pictures_are_not_recorded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(pipeline, "graphs", graphed(pipeline, recorder, max_tokens=11))
    pipeline.generate("a red fox", **SMALL)  # 12 tokens
    assert recorder.captured == []


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_graphs_of_two_sizes_in_a_cache_of_one(golden_checkpoint: str) -> None:
    drawer = Pipeline.load(golden_checkpoint, device="cuda", dtype="bfloat16")
    sizes = ("64x48", "48x64", "64x48")
    asked: list[dict[str, Any]] = [SMALL | {"size": size} for size in sizes]
    plain = [drawer.generate("a red fox", **options)[0] for options in asked]
    drawer.graphs = GraphedDenoiser(drawer.denoiser, capacity=1, patience=0)
    recorded = [drawer.generate("a red fox", **options)[0] for options in asked]
    assert drawer.graphs.graphs.failure is None
    assert len(drawer.graphs.graphs) == 1
    for ours, theirs in zip(recorded, plain, strict=True):
        assert np.abs(ours.pixels.astype(int) - theirs.pixels.astype(int)).max() <= 1
