from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petzval.errors import NumericsError, QueueFullError, RequestError
from petzval.inference import drawer as drawers
from petzval.inference.delivery import Delivery, Live, partial_steps
from petzval.inference.drawer import LoadedDrawer, PipelineDrawer
from petzval.inference.engine import Engine
from petzval.inference.pipeline import Pipeline
from petzval.inference.plan import PlannedImage, make_plan
from petzval.inference.request import GenerationRequest
from petzval.inference.task import HIGH, Ended, Finished, Started, Stepped, Task, TaskEvent
from tests.server.scripted import MODEL, ScriptedDrawer
from tests.support import PATIENCE, until


def _task(id: str, *, owner: str = "", **options: Any) -> Task:
    asked = {name: options.pop(name) for name in ("seed", "num_images", "steps") if name in options}
    request = GenerationRequest(prompt="a fox", size="128x128", **asked)
    plan = make_plan(request, MODEL.defaults)
    return Task(id=id, plan=plan, model=MODEL.name, owner=owner, **options)


class _Ears:
    """Listens to tasks, and waits for their ends."""

    def __init__(self) -> None:
        self.events: list[TaskEvent] = []
        self._heard = threading.Condition()

    def __call__(self, event: TaskEvent) -> None:
        with self._heard:
            self.events.append(event)
            self._heard.notify_all()

    def wait(self, done: Callable[[], bool]) -> None:
        with self._heard:
            assert self._heard.wait_for(done, PATIENCE)

    def end(self, task: str) -> Ended:
        def found() -> list[Ended]:
            return [e for e in self.events if isinstance(e, Ended) and e.task == task]

        self.wait(lambda: bool(found()))
        [end] = found()
        return end

    def pictures(self, task: str) -> list[int]:
        found = [e for e in self.events if isinstance(e, Finished) and e.task == task]
        return [event.image.index for event in found]


def test_nothing_follows_the_end_of_a_task() -> None:
    """It was cancelled while its next event was on its way."""
    ears, delivery = _Ears(), Delivery(at_once=True)
    live = Live(task=_task("t"), listener=ears, delivery=delivery, missing={0})
    delivery.put_end(live, Ended(task="t", how="cancelled"))
    delivery.put_start(live)
    delivery.put_end(live, Ended(task="t", how="timeout"))
    assert ears.events == [Ended(task="t", how="cancelled")]


def test_a_task_is_told_from_start_to_end() -> None:
    ears = _Ears()
    with Engine([ScriptedDrawer()]) as engine:
        engine.submit(_task("t", num_images=2, partials=1), ears)
        assert ears.end("t").how == "done"
    assert isinstance(ears.events[0], Started)
    steps = [e for e in ears.events if isinstance(e, Stepped)]
    assert [(e.image, e.step) for e in steps] == [(i, s) for i in (0, 1) for s in (1, 2, 3, 4)]
    assert [e.step for e in steps if e.partial is not None] == [2, 2]
    assert ears.pictures("t") == [0, 1]
    previews = [e.preview for e in steps if e.preview is not None]
    assert previews and previews[0]().shape == (1, 8, 8, 3)


def test_a_flood_of_one_owner_does_not_hold_up_another() -> None:
    drawer, ears = ScriptedDrawer(), _Ears()
    drawer.gate.clear()

    def stop_after_the_one(image: PlannedImage, step: int) -> None:
        if image.seed == 1000 and step == 1:
            drawer.gate.clear()

    drawer.fail = stop_after_the_one
    with Engine([drawer]) as engine:
        for number in range(20):
            engine.submit(_task(f"flood {number}", owner="many", seed=number), ears)
        engine.submit(_task("one", owner="few", seed=1000), ears)
        drawer.gate.set()
        until(lambda: 1000 in drawer.drawn)
        assert drawer.drawn.index(1000) <= 4
        engine.submit(_task("urgent", owner="many", seed=2000, priority=HIGH), ears)
        until(lambda: not drawer.gate.is_set())
        drawer.gate.set()
        ears.end("urgent")
        assert drawer.drawn.index(2000) == drawer.drawn.index(1000) + 1


def test_compatible_pictures_share_a_batch_and_others_do_not() -> None:
    drawer, ears = ScriptedDrawer(), _Ears()
    drawer.gate.clear()
    with Engine([drawer], batch_size=4) as engine:
        engine.submit(_task("first"), ears)
        ears.wait(lambda: bool(ears.events))
        engine.submit(_task("a", owner="a", num_images=2), ears)
        engine.submit(_task("b", owner="b", num_images=2), ears)
        engine.submit(_task("c", owner="c", steps=7), ears)
        drawer.gate.set()
        for id in ("a", "b", "c"):
            assert ears.end(id).how == "done"
        assert sorted(drawer.batches) == [1, 1, 4]
    assert sorted(ears.pictures("a")) == sorted(ears.pictures("b")) == [0, 1]


def test_a_culprit_in_a_batch_fails_alone() -> None:
    def fail(image: Any, step: int) -> None:
        if image.seed == 13 and step == 2:
            raise NumericsError("a number stopped being finite")

    drawer, ears = ScriptedDrawer(fail=fail), _Ears()
    drawer.gate.clear()
    with Engine([drawer], batch_size=4) as engine:
        engine.submit(_task("first", steps=3), ears)
        ears.wait(lambda: bool(ears.events))
        engine.submit(_task("good", seed=1), ears)
        engine.submit(_task("bad", seed=13), ears)
        drawer.gate.set()
        assert ears.end("good").how == "done"
        end = ears.end("bad")
    assert end.how == "failed" and isinstance(end.error, NumericsError)
    assert drawer.batches[1] == 2, "they were together at first"


def test_the_queue_is_bounded_and_says_so() -> None:
    drawer, ears = ScriptedDrawer(), _Ears()
    drawer.gate.clear()
    with Engine([drawer], capacity=1) as engine:
        engine.submit(_task("drawn"), ears)
        ears.wait(lambda: bool(ears.events))
        engine.submit(_task("waits"), ears)
        with pytest.raises(QueueFullError):
            engine.submit(_task("too many"), ears)
        engine.submit(_task("resumed"), ears, over_capacity=True)
        assert engine.positions() == {"waits": 1, "resumed": 2}
        drawer.gate.set()
        assert ears.end("resumed").how == "done"


def test_cancelling_one_of_a_batch_leaves_the_other() -> None:
    drawer, ears = ScriptedDrawer(), _Ears()
    drawer.gate.clear()

    def stop_them(image: PlannedImage, step: int) -> None:
        if image.seed == 7 and step == 5:
            drawer.gate.clear()

    drawer.fail = stop_them
    with Engine([drawer], batch_size=2) as engine:
        engine.submit(_task("first"), ears)
        ears.wait(lambda: bool(ears.events))
        engine.submit(_task("stays", steps=20), ears)
        engine.submit(_task("goes", steps=20, seed=7), ears)
        drawer.gate.set()
        ears.wait(lambda: any(isinstance(e, Stepped) and e.task == "goes" for e in ears.events))
        until(lambda: not drawer.gate.is_set())
        assert engine.cancel("goes")
        assert not engine.cancel("goes")
        drawer.gate.set()
        assert ears.end("goes").how == "cancelled"
        assert ears.end("stays").how == "done"
    after = ears.events[ears.events.index(ears.end("goes")) :]
    assert all(event.task == "stays" for event in after[1:] if not isinstance(event, Finished))


def test_closing_finishes_the_picture_and_leaves_the_rest() -> None:
    drawer, ears = ScriptedDrawer(), _Ears()
    drawer.gate.clear()
    engine = Engine([drawer])
    engine.start()
    engine.submit(_task("t", num_images=3), ears)
    ears.wait(lambda: bool(ears.events))
    assert engine.is_working
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(lambda: not engine.is_working)
    drawer.gate.set()
    closing.join()
    assert ears.pictures("t") == [0]
    assert not any(isinstance(event, Ended) for event in ears.events)


def test_closing_in_a_hurry_gives_the_picture_up() -> None:
    drawer, ears = ScriptedDrawer(seconds=0.2), _Ears()
    engine = Engine([drawer])
    engine.start()
    engine.submit(_task("t", steps=100), ears)
    ears.wait(lambda: bool(ears.events))
    began = time.monotonic()
    engine.close(0.1)
    assert time.monotonic() - began < 0.5 * 100 * drawer.seconds
    assert ears.pictures("t") == []


def test_a_listener_that_fails_is_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    def deaf(event: TaskEvent) -> None:
        raise RuntimeError("deaf")

    ears = _Ears()
    with Engine([ScriptedDrawer()]) as engine:
        engine.submit(_task("deaf"), deaf)
        engine.submit(_task("hears"), ears)
        assert ears.end("hears").how == "done"
    assert "a listener failed" in caplog.text


def test_decoding_may_be_left_to_the_delivery() -> None:
    ears = _Ears()
    with Engine([ScriptedDrawer(leave_decoding=True)], batch_size=2) as engine:
        engine.submit(_task("t", num_images=3), ears)
        assert ears.end("t").how == "done"
    assert sorted(ears.pictures("t")) == [0, 1, 2]


def test_partials_are_spread_evenly() -> None:
    assert partial_steps(0, 20) == frozenset()
    assert partial_steps(3, 20) == {5, 10, 15}
    assert partial_steps(3, 4) == {1, 2, 3}
    assert partial_steps(3, 2) == {1}
    assert partial_steps(1, 1) == frozenset()


@pytest.mark.parametrize("overlap", [False, True])
def test_the_engine_draws_what_the_pipeline_draws(
    golden_checkpoint: Path, pipeline: Pipeline, overlap: bool
) -> None:
    request = GenerationRequest(
        prompt="a fox", size="64x64", steps=2, num_images=2, seed=4, guidance=2.0
    )
    expected = pipeline.generate(request)
    drawer = PipelineDrawer([golden_checkpoint], device="cpu", dtype="float32", overlap=overlap)
    [model] = drawer.models
    plan = make_plan(request, model.defaults)
    ears = _Ears()
    with Engine([drawer]) as engine:
        engine.submit(Task(id="t", plan=plan, model=model.name), ears)
        other = replace(plan, images=plan.images[:1])
        engine.submit(Task(id="u", plan=other, model=model.name), ears)
        assert ears.end("t").how == ears.end("u").how == "done"
    images = [e.image for e in ears.events if isinstance(e, Finished) and e.task == "t"]
    assert all(
        np.array_equal(a.pixels, b.pixels) and a.recipe == b.recipe
        for a, b in zip(images, expected, strict=True)
    )
    assert set(images[0].seconds) == {"encode", "denoise", "decode"}


def test_compiled_networks_are_warmed_up_before_the_first_caller(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU only they: nothing else there is slower at first."""
    compiled: list[Pipeline] = []
    drawn: list[tuple[Pipeline, int]] = []
    monkeypatch.setattr(drawers, "compile_pipeline", compiled.append)

    def generate(pipeline: Pipeline, request: str, **options: Any) -> None:
        drawn.append((pipeline, options["steps"]))

    monkeypatch.setattr(Pipeline, "generate", generate)
    PipelineDrawer([golden_checkpoint], device="cpu", dtype="float32").warm_up()
    assert compiled == drawn == []
    PipelineDrawer([golden_checkpoint], device="cpu", dtype="float32", compile=True).warm_up()
    assert [(pipeline, 1) for pipeline in compiled] == drawn
    assert len(drawn) == 1


def test_a_task_may_be_run_in_ones_own_thread() -> None:
    """What `run` tells is what a started engine tells, and no thread is started for it.

    All pictures are one plan here, which this drawer draws side by side: only their order differs.
    """
    task, ears = _task("t", num_images=3, partials=1), _Ears()
    with Engine([ScriptedDrawer()]) as engine:
        engine.submit(task, ears)
        ears.end("t")
        with pytest.raises(RuntimeError, match="was started"):
            engine.run(task)
    before = set(threading.enumerate())
    alone = list(Engine([ScriptedDrawer(leave_decoding=True)]).run(task))
    assert set(threading.enumerate()) <= before
    assert sorted(map(_facts, alone)) == sorted(map(_facts, ears.events))
    assert isinstance(alone[0], Started) and alone[-1] == ears.end("t")


def _facts(event: TaskEvent) -> str:
    if isinstance(event, Stepped):
        return f"{event.image} {event.step}/{event.num_steps} {event.partial is not None}"
    if isinstance(event, Finished):
        return f"{event.image.index} {event.image.recipe} {event.image.pixels.tobytes()!r}"
    return str(event)


def test_a_part_of_a_plan_is_run_under_its_own_indices() -> None:
    task = _task("t", num_images=3)
    rest = replace(task, plan=replace(task.plan, images=task.plan.images[1:]))
    events = list(Engine([ScriptedDrawer()]).run(rest))
    images = [event.image for event in events if isinstance(event, Finished)]
    assert [(image.index, image.recipe.seed) for image in images] == [(1, 1), (2, 2)]


def test_a_task_that_fails_alone_is_not_tried_again() -> None:
    error = RuntimeError("a bug")

    def fail(image: PlannedImage, step: int) -> None:
        if (image.index, step) == (0, 3):
            raise error

    drawer = ScriptedDrawer(fail=fail)
    *_, last = Engine([drawer]).run(_task("t"))
    assert last == Ended(task="t", how="failed", error=error)
    assert drawer.drawn == [0]


def test_a_task_alone_stops_with_its_listener_and_in_time() -> None:
    drawer = ScriptedDrawer()
    engine = Engine([drawer])
    events = engine.run(_task("t", steps=100))
    assert isinstance(next(events), Started) and isinstance(next(events), Stepped)
    events.close()
    assert not engine.cancel("t"), "nothing is left of it"
    drawer.seconds = 0.3
    *_, last = engine.run(_task("slow", steps=100, draw_seconds=0.5))
    assert isinstance(last, Ended) and last.how == "timeout"


def test_a_loaded_pipeline_is_run_as_it_is(pipeline: Pipeline) -> None:
    """The command line's path: the whole plan in one go, refused at the call where it must be."""
    request = GenerationRequest(
        prompt=["a fox", "a cat"], size="64x64", steps=2, num_images=2, parity="microsoft"
    )
    expected = pipeline.generate(request)
    engine = Engine([LoadedDrawer(pipeline)])
    [model] = engine.models
    task = Task(id="t", plan=make_plan(request, model.defaults), model=model.name)
    images = [event.image for event in engine.run(task) if isinstance(event, Finished)]
    assert [image.encode() for image in images] == [image.encode() for image in expected]
    with pytest.raises(RequestError, match="no further LoRAs"):
        engine.run(replace(task, loras=(("ink", 1.0),)))
    far = replace(task.plan.images[0], noise_row=1 << 22)
    with pytest.raises(RequestError, match="noise row"):
        engine.run(replace(task, plan=replace(task.plan, images=(far,))))


def test_a_lora_that_fits_nothing_is_refused(golden_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(RequestError, match="fits none"):
        PipelineDrawer([golden_checkpoint], loras={"x": tmp_path / "x.safetensors"}, device="cpu")
