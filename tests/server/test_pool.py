"""Two drawing replicas and one that encodes, on a Ray cluster of this machine (`PETZVAL_RAY=1`)."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from petzval.inference.engine import Drawer, Engine
from petzval.inference.pipeline import Pipeline
from petzval.inference.plan import make_plan
from petzval.inference.request import GenerationRequest
from petzval.inference.task import Ended, Finished, Task, TaskEvent
from petzval.server.pool import PooledDrawer, PoolSettings, start_pool, stop_pool

# Warnings of Ray are not ours to mend.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def drawers(golden_checkpoint: Path) -> Generator[tuple[PooledDrawer, ...]]:
    pool = PoolSettings(
        models=(str(golden_checkpoint),),
        device="cpu",
        dtype="float32",
        threads=1,
        replicas=2,
        encoders=1,
        cpus=0.5,
    )
    yield start_pool(pool)
    stop_pool()


def test_the_pool_draws_what_the_pipeline_draws(
    drawers: tuple[PooledDrawer, ...], golden_checkpoint: Path
) -> None:
    pipeline = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32")
    request = GenerationRequest(prompt="a fox", size="64x64", steps=2, num_images=3, guidance=2.0)
    expected = pipeline.generate(request)
    assert len(drawers) == 2 and isinstance(drawers[0], Drawer)
    [model] = drawers[0].models
    events: list[TaskEvent] = []
    ended = threading.Event()

    def hear(event: TaskEvent) -> None:
        events.append(event)
        if isinstance(event, Ended):
            ended.set()

    with Engine(drawers) as engine:
        plan = make_plan(request, model.defaults)
        engine.submit(Task(id="t", plan=plan, model=model.name, partials=1), hear)
        assert ended.wait(60)
    assert isinstance(events[-1], Ended) and events[-1].how == "done", events[-1]
    images = sorted(
        (event.image for event in events if isinstance(event, Finished)), key=lambda i: i.index
    )
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(images, expected, strict=True))


def test_stopping_early_stops_the_replica(drawers: tuple[PooledDrawer, ...]) -> None:
    [model] = drawers[0].models
    plan = make_plan(GenerationRequest(prompt="a fox", size="64x64", steps=50), model.defaults)
    events = drawers[0].draw(model.name, (), plan)
    first = next(events)
    assert (first.step, first.num_steps) == (1, 50)
    assert first.preview().shape == (1, 64, 64, 3)
    events.close()
    assert next(drawers[1].draw(model.name, (), plan)).step == 1
