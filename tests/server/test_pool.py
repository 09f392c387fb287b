"""Replicas that draw and encoders that they share.

Most of it needs a Ray cluster on this machine, two replicas and one encoder (`PETZVAL_RAY=1`). The
deaths are real: `kill -9`, of the processes that this cluster started and of no others.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from petzval.errors import PlacementError
from petzval.inference import planning
from petzval.inference.engine import Drawer, Engine
from petzval.inference.pipeline import Pipeline
from petzval.inference.plan import make_plan
from petzval.inference.request import GenerationRequest
from petzval.inference.task import Ended, Finished, Task, TaskEvent
from petzval.inference.terms import Budget
from petzval.server.pool import (
    Drawing,
    Encoding,
    PooledDrawer,
    PoolSettings,
    SentStep,
    rooms_of,
    start_pool,
    stop_pool,
)
from tests.server.running import Running, running
from tests.support import PATIENCE, QUICK_TO_READ

# Warnings of Ray are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def _pool(checkpoint: Path) -> PoolSettings:
    return PoolSettings(
        models=(str(checkpoint),),
        device="cpu",
        dtype="float32",
        threads=1,
        replicas=2,
        encoders=1,
        cpus=0.5,
    )


@pytest.fixture(scope="module")
def drawers(golden_checkpoint: Path) -> Generator[tuple[PooledDrawer, ...]]:
    yield start_pool(_pool(golden_checkpoint))
    stop_pool()


class _Handle:
    """An `Encoding` in this process, as a replica's handle."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    @property
    def encode(self) -> Any:
        def remote(*arguments: Any) -> Any:
            return SimpleNamespace(result=lambda: self._encoding.encode(*arguments))

        return SimpleNamespace(remote=remote)


@pytest.fixture
def threads() -> Generator[None]:
    """Replicas draw on one thread, and so does what they are compared with."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("memory", [None, "8GB"])
def test_a_drawer_asks_the_shared_encoder(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, memory: str | None
) -> None:
    """What replicas do, without a cluster."""
    monkeypatch.setattr(planning, "measured_speeds", lambda *machine: QUICK_TO_READ)
    pool = replace(_pool(golden_checkpoint), memory=memory)
    drawing = Drawing(pool, _Handle(Encoding(pool)))
    pipeline = _pipeline(golden_checkpoint)
    plan = pipeline.plan("a fox", size="64x64", steps=2, guidance=2.0, seed=3)
    [expected] = pipeline.generate(plan)

    async def last() -> SentStep:
        [*_, sent] = [sent async for sent in drawing.draw(drawing.models()[0].name, (), plan)]
        return sent

    [image] = asyncio.run(last()).images
    assert image.encode() == expected.encode()
    [(model, bounds)] = drawing.bounds().items()
    assert (bounds is None) == (memory is None)
    if bounds is not None:
        bounds = replace(bounds, limits=Budget(memory=bounds.baseline + 1000))
    drawer = PooledDrawer(None, drawing.models(), rooms_of(pool, {model: bounds}))
    drawer.check(model, (), plan)
    if memory is not None:  # in this process, while replicas draw
        with pytest.raises(PlacementError, match="no plan for 1040x1040 fits in"):
            drawer.check(model, (), pipeline.plan("a fox", size="1040x1040", steps=2))
        elsewhere = replace(pool, models=("/nowhere/at/all",))
        assert rooms_of(elsewhere, {"all": bounds}) == {}  # the replicas have it


@pytest.mark.ray
@pytest.mark.usefixtures("threads")
def test_the_pool_draws_what_the_pipeline_draws(
    drawers: tuple[PooledDrawer, ...], golden_checkpoint: Path
) -> None:
    pipeline = _pipeline(golden_checkpoint)
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


@pytest.mark.ray
def test_stopping_early_stops_the_replica(drawers: tuple[PooledDrawer, ...]) -> None:
    [model] = drawers[0].models
    plan = make_plan(GenerationRequest(prompt="a fox", size="64x64", steps=50), model.defaults)
    events = drawers[0].draw(model.name, (), plan)
    first = next(events)
    assert (first.step, first.num_steps) == (1, 50)
    assert first.preview().shape == (1, 64, 64, 3)
    events.close()
    assert next(drawers[1].draw(model.name, (), plan)).step == 1


# ── replicas that die ─────────────────────────────────────────────────────────────────────────────

# Long enough for a death in the middle, on any machine.
_LONG: dict[str, Any] = {"size": "256x256", "steps": 100}


@pytest.mark.ray
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("deaths", [1, 2], ids=["one of two", "both"])
def test_a_dying_replica_loses_no_job(
    drawers: tuple[PooledDrawer, ...], golden_checkpoint: Path, tmp_path: Path, deaths: int
) -> None:
    """Both draw when they are killed; who asked hears of one end, and of every picture once."""
    with running(tmp_path, drawers) as studio:
        asked = [studio.submit(seed=10 * number, n=2, **_LONG)["id"] for number in (1, 2)]
        told = [_Told(studio, job) for job in asked]
        _until(lambda: all(told[0].steps.get(image, 0) > 5 for image in (0, 1)))
        replicas = _processes("Drawing")
        assert len(replicas) == 2
        for process in replicas[:deaths]:
            os.kill(process, signal.SIGKILL)
        jobs = [studio.wait(job) for job in asked]
        _until(lambda: not any(each.thread.is_alive() for each in told))
        again = studio.submit(seed=5, **_LONG)["id"]
        assert studio.wait(again)["status"] == "done", "and the pool goes on"
    assert not set(replicas[:deaths]) & set(_processes("Drawing"))
    pipeline = _pipeline(golden_checkpoint)
    for job, heard in zip(jobs, told, strict=True):
        assert job["status"] == "done", job
        seeds = [job["request"]["seed"] + number for number in (0, 1)]
        assert [(each["index"], each["seed"]) for each in job["images"]] == [*enumerate(seeds)]
        assert (heard.names.count("picture"), heard.names.count("end")) == (2, 1)
        expected = pipeline.generate("a fox", num_images=2, seed=seeds[0], **_LONG)
        files = [tmp_path / "pictures" / f"{each['id']}.png" for each in job["images"]]
        pictures = [np.asarray(Image.open(file)) for file in files]
        assert all(np.array_equal(a, b.pixels) for a, b in zip(pictures, expected, strict=True))
    assert any(heard.went_back for heard in told), "something was drawn again"


@pytest.mark.ray
def test_a_dead_encoder_is_waited_for(drawers: tuple[PooledDrawer, ...], tmp_path: Path) -> None:
    with running(tmp_path, drawers) as studio:
        [encoder] = _processes("Encoding")
        os.kill(encoder, signal.SIGKILL)
        job = studio.submit(prompt="words that no cache has", size="64x64", steps=2)
        assert studio.wait(job["id"])["status"] == "done"


class _Told:
    """What a job's stream of events tells, heard in a thread of its own.

    Attributes:
        steps: of each picture, the last that was heard of.
        went_back: a picture began anew.
    """

    def __init__(self, studio: Running, job: str) -> None:
        self.names: list[str] = []
        self.steps: dict[int, int] = {}
        self.went_back = False
        self.thread = threading.Thread(target=self._follow, args=(studio, job), daemon=True)
        self.thread.start()

    def _follow(self, studio: Running, job: str) -> None:
        with studio.client.stream("GET", f"/v1/jobs/{job}/events", timeout=PATIENCE) as stream:
            for line in stream.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    self.names.append(value)
                elif field == "data" and self.names[-1] == "progress":
                    self._step(json.loads(value))

    def _step(self, progress: dict[str, Any]) -> None:
        image, step = progress["image"], progress["step"]
        self.went_back |= step < self.steps.get(image, 0)
        self.steps[image] = step


def _pipeline(checkpoint: Path) -> Pipeline:
    """What replicas are compared with; the last bits depend on the number of threads."""
    torch.set_num_threads(1)
    return Pipeline.load(checkpoint, device="cpu", dtype="float32")


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _processes(deployment: str) -> list[int]:
    """Replicas of a deployment that descend from this process."""
    name = f"ray::ServeReplica:petzval:{deployment}".encode()
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(name) and _is_ours(int(place.name)):
                found.append(int(place.name))
        except FileNotFoundError:
            continue
    return found


def _is_ours(process: int) -> bool:
    while process > 1 and process != os.getpid():
        stat = (Path("/proc") / str(process) / "stat").read_text()
        process = int(stat.rpartition(")")[2].split()[1])
    return process == os.getpid()
