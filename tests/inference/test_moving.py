"""Networks that come and go under whoever holds on to them: formats, LoRAs, threads, servers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petzval.errors import PlacementError
from petzval.inference.decoding import Decodings
from petzval.inference.drawer import PipelineDrawer
from petzval.inference.engine import Engine
from petzval.inference.event import StepEvent
from petzval.inference.finishing import Finishing
from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import DENOISER, ENCODER, Placement
from petzval.inference.plan import make_plan
from petzval.inference.planner import Planner
from petzval.inference.planning import MemoryWarning, Planning
from petzval.inference.projection import CACHE_VARIABLE
from petzval.inference.request import GenerationRequest
from petzval.inference.residency import Residency
from petzval.inference.task import Ended, NamedLora, Stepped, Task, TaskEvent
from petzval.inference.words import Words
from petzval.models.vae import Autoencoder
from petzval.weights.component import open_component
from petzval.weights.convert import convert_component
from tests.inference.test_loras import write_lora
from tests.support import PATIENCE, SPEEDS
from tests.weights.formats import comfyui_encoder, original_vae, saved, settings

FOX = "A red fox sleeping under a birch tree"
SMALL: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 2.0, "seed": 3}
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


def _out_of_memory(*args: object, **options: object) -> None:
    raise torch.OutOfMemoryError("as if")


def smallest(pipeline: Pipeline) -> Placement:
    """Of all placements for `SMALL`: what can be streamed is, the rest comes and goes."""
    planning = pipeline.planning
    assert planning is not None
    work = planning.work(pipeline.plan(FOX, **SMALL))
    planner = Planner(planning.checkpoint, planning.device, planning.dtype, work, SPEEDS)

    def needs(placement: Placement) -> tuple[int, int]:
        return placement.peak_bytes, sum(each.weight_bytes for each in placement.networks)

    least = min(planner.placements, key=needs)
    assert least.of(ENCODER).strategy.residence == "streamed"
    assert least.of(DENOISER).strategy.residence == "streamed"
    return least


def follow(pipeline: Pipeline) -> Pipeline:
    """The same pipeline under its smallest placement."""
    placement = smallest(pipeline)
    assert pipeline.planning is not None
    residency = pipeline.planning.follow(placement)
    pipeline.moving.leaving()
    pipeline.moving.residency.release()
    pipeline.moving.adopt(residency)
    return pipeline


def pixels(pipeline: Pipeline, **changes: Any) -> np.ndarray[Any, Any]:
    [image] = pipeline.generate(FOX, **{**SMALL, **changes})
    return image.pixels.astype(int)


def run_out(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the denoiser finds no memory, until the plan is a smaller one."""

    def fail(*arguments: Any, **options: Any) -> torch.Tensor:
        del arguments, options
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    placement = smallest(pipeline)
    monkeypatch.setattr(pipeline.denoiser, "forward", fail)
    monkeypatch.setattr(Planning, "smaller", lambda *_: placement)


# ── formats ───────────────────────────────────────────────────────────────────────────────────────


def test_parts_of_other_formats_come_and_go(golden_checkpoint: Path, tmp_path: Path) -> None:
    denoiser = tmp_path / "denoiser.gguf"
    convert_component(open_component(golden_checkpoint, "denoiser"), denoiser, "gguf-q8_0")
    parts: dict[str, Any] = {
        "denoiser": denoiser,
        "encoder": saved(tmp_path / "e.safetensors", comfyui_encoder(), settings("encoder")),
        "vae": saved(tmp_path / "v.safetensors", original_vae(), settings("vae")),
    }
    pipeline = Pipeline.load(None, **OPTIONS, **parts)
    expected = pixels(pipeline)
    stored = dict(smallest(pipeline).of(DENOISER).stored)
    assert stored["Q8_0"] > 0  # told by the format's own name
    assert abs(pixels(follow(pipeline)) - expected).max() <= 1


# ── LoRAs beside the weights ──────────────────────────────────────────────────────────────────────


def test_live_loras_follow_the_networks(golden_checkpoint: Path, tmp_path: Path) -> None:
    style = write_lora(tmp_path / "ink.safetensors", golden_checkpoint, 0)
    live = Pipeline.load(golden_checkpoint, lora=[(style, 1.0)], live_lora=True, **OPTIONS)
    strong = pixels(live)
    live.set_lora_weights(0)
    plain = pixels(live)
    assert abs(strong - plain).max() > 1
    follow(live)
    assert abs(pixels(live) - plain).max() <= 1
    live.set_lora_weights(1.0)
    assert abs(pixels(live) - strong).max() <= 1
    assert live.planning is not None
    assert live.planning.merged == ()


# ── threads ───────────────────────────────────────────────────────────────────────────────────────


def test_what_was_left_to_decode_is_decoded_before_the_networks_move(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Pipeline.load(golden_checkpoint, **OPTIONS).generate([FOX, "two words"], **SMALL)
    pipeline = Pipeline.load(golden_checkpoint, **OPTIONS)
    events = pipeline.steps([FOX, "two words"], leave_decoding=True, **SMALL)
    first = [next(events), next(events)]
    assert first[0].any_thread
    assert first[1].images == ()
    finish = first[1].finish
    assert finish is not None
    run_out(pipeline, monkeypatch)
    with pytest.warns(MemoryWarning, match="memory ran out; going on with"):
        second = list(events)
    assert second[-1].finish is None  # decoded where it was drawn
    assert not second[-1].any_thread
    with pytest.raises(PlacementError, match="the networks have moved"):
        first[0].preview()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(finish()))
    thread.start()
    thread.join()
    assert finish() == tuple(found)  # once
    assert np.array_equal(found[0].pixels, expected[0].pixels)
    difference = second[-1].images[0].pixels.astype(int) - expected[1].pixels.astype(int)
    assert abs(difference).max() <= 1


def test_another_thread_that_finds_no_memory_decodes_in_strips(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.load(golden_checkpoint, **OPTIONS)
    expected = pixels(pipeline)
    [*_, last] = pipeline.steps(FOX, leave_decoding=True, **SMALL)

    def fail(*arguments: Any) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(Autoencoder, "decode", fail)
    assert last.finish is not None
    [image] = last.finish()
    assert abs(image.pixels.astype(int) - expected).max() <= 1


def test_a_decoding_without_memory_even_for_strips_is_one_line() -> None:
    def fail(*, strip_rows: int | None = None) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    decodings = Decodings()
    with pytest.raises(PlacementError, match="in strips as well"):
        decodings.late(fail, torch.device("cpu"))()
    with pytest.raises(PlacementError, match="for a preview"):
        decodings.preview(fail)()


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("stage", ["encoder", "denoiser", "modulation", "autoencoder"])
def test_memory_that_runs_out_anywhere_becomes_a_smaller_plan(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, stage: str, batch_size: int
) -> None:
    pipeline = Pipeline.load(golden_checkpoint, **OPTIONS)
    placement = smallest(pipeline)
    networks = pipeline.networks
    failing: Any = {
        "encoder": networks.encoder,
        "denoiser": networks.denoiser,
        "modulation": networks.denoiser,
        "autoencoder": networks.autoencoder,
    }[stage]

    def fail(*arguments: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    name = {"modulation": "modulations", "autoencoder": "decode"}.get(stage, "forward")
    monkeypatch.setattr(failing, name, fail)
    monkeypatch.setattr(Planning, "smaller", lambda *_: placement)
    with pytest.warns(MemoryWarning, match="memory ran out; going on with"):
        images = pipeline.generate(["a fox", "two words"], batch_size=batch_size, **SMALL)
    assert [image.pixels.std() > 0 for image in images] == [True, True]
    assert pipeline.placement is placement


def test_words_encoded_ahead_do_not_end_a_thread_where_memory_runs_out(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawer = PipelineDrawer([golden_checkpoint], overlap=True, **OPTIONS)
    [model] = drawer.models
    pipeline = drawer._loaded[model.name].pipeline

    def fail(plan: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline, "encode_prompts", fail)
    drawer.prepare(model.name, make_plan(GenerationRequest(prompt=FOX, **SMALL), model.defaults))
    assert drawer._ahead is not None
    drawer._ahead.join(PATIENCE)  # an error of a thread would fail the test
    pipeline.moving.previews.wait(PATIENCE)


def test_an_error_of_a_late_decoding_is_raised_to_whoever_asks() -> None:
    decodings, calls = Decodings(), []

    def fail(*, strip_rows: int | None = None) -> Any:
        calls.append(strip_rows)
        raise ValueError("torn")

    late = decodings.late(fail, torch.device("cpu"))
    with decodings.moving():
        assert calls == [None]  # kept for later, not raised here
    for _ in range(2):
        with pytest.raises(ValueError, match="torn"):
            late()
    assert calls == [None]


def test_nothing_is_encoded_while_the_networks_move(pipeline: Pipeline) -> None:
    words = Words(pipeline.text)
    plan = pipeline.plan("never encoded before", **SMALL)
    done = threading.Event()

    def encode() -> None:
        words.encode(plan, plan.texts)
        done.set()

    with words.moving():
        thread = threading.Thread(target=encode)
        thread.start()
        assert not done.wait(0.05)
    thread.join(PATIENCE)
    assert done.is_set()


# ── previews and servers ──────────────────────────────────────────────────────────────────────────


def test_small_previews_keep_no_weights(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    pipeline = follow(Pipeline.load(golden_checkpoint, **OPTIONS))
    pipeline.moving.previews.begin()
    assert pipeline.moving.previews.wait(0.0)  # fitted at once: the decoder does not stay
    events: list[StepEvent] = list(pipeline.steps(FOX, **SMALL))
    pipeline.put_out()
    networks = pipeline.networks
    for network in (networks.encoder, networks.denoiser, networks.autoencoder):
        assert all(weight.is_meta for weight in network.parameters())
    for event in events:
        assert event.small_preview is not None
        assert event.small_preview().shape == (1, 24, 32, 3)
    assert abs(pixels(pipeline) - events[-1].images[0].pixels.astype(int)).max() == 0


def test_a_server_keeps_one_pipelines_weights_where_they_come_and_go(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    style = write_lora(tmp_path / "ink.safetensors", golden_checkpoint, 0)
    drawer = PipelineDrawer([golden_checkpoint], loras={"ink": style}, overlap=True, **OPTIONS)
    [model] = drawer.models
    base = drawer._loaded[model.name].pipeline
    base.moving.previews.wait(PATIENCE)
    plan = make_plan(GenerationRequest(prompt=FOX, **SMALL), model.defaults)

    def drawn(loras: tuple[NamedLora, ...] = ()) -> np.ndarray[Any, Any]:
        drawer.prepare(model.name, plan)
        [*_, last] = drawer.draw(model.name, loras, plan)
        images = last.images if last.finish is None else last.finish()
        [image] = list(images)
        return image.pixels.astype(int)

    ink: tuple[NamedLora, ...] = (("ink", 1.0),)
    plain, styled = drawn(), drawn(ink)
    assert abs(styled - plain).max() > 1
    follow(base)
    assert abs(drawn(ink) - styled).max() <= 1  # the copy that shared the base's networks is gone
    assert all(weight.is_meta for weight in base.networks.autoencoder.parameters())
    assert abs(drawn() - plain).max() <= 1
    [copy] = drawer._copies.values()
    assert all(weight.is_meta for weight in copy.networks.autoencoder.parameters())

    heard: list[TaskEvent] = []
    with Engine([drawer]) as engine:
        ended = threading.Event()

        def listen(event: TaskEvent) -> None:
            heard.append(event)
            if isinstance(event, Ended):
                ended.set()

        engine.submit(Task(id="t", plan=plan, model=model.name, partials=1), listen)
        assert ended.wait(PATIENCE)
    assert isinstance(heard[-1], Ended)
    assert heard[-1].how == "done"
    shown = [event.partial for event in heard if isinstance(event, Stepped)]
    assert shown[0] is not None
    assert shown[0].shape == (48, 64, 3)


@pytest.mark.parametrize("room", [True, False])
def test_a_pipeline_outlives_a_picture_that_nothing_has_room_for(
    golden_checkpoint: Path, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was there for good, and was released for a smaller plan, which there was not."""
    pipeline = Pipeline.load(golden_checkpoint, **OPTIONS)
    [expected] = pipeline.generate(FOX, **SMALL)

    def refuse(*_: object) -> Placement:
        raise PlacementError("nothing is smaller", "draw less")

    def no_room(self: Planning) -> Residency:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Planning, "smaller", refuse)
        patch.setattr(Finishing, "decode", _out_of_memory)
        if not room:
            patch.setattr(Planning, "_load_everything", no_room)
        with pytest.raises(PlacementError, match="nothing is smaller"):
            pipeline.generate(FOX, **SMALL)
    assert (pipeline.placement is None) == room
    [again] = pipeline.generate(FOX, **SMALL)
    if room:
        assert again.encode() == expected.encode()
    else:  # decoded in strips
        assert np.abs(again.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1
