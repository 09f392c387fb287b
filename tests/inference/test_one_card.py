"""Several models and LoRAs under one limit of memory, and what may run beside each other there."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petzval.conditioning.encoder import PromptEncoder
from petzval.errors import PlacementError
from petzval.inference import drawer as drawers
from petzval.inference import lone_encoder, projection
from petzval.inference.drawer import CompileWarning, PipelineDrawer
from petzval.inference.dry_networks import Work
from petzval.inference.lone_encoder import held_bytes, load_prompt_encoder
from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import ENCODER, Placement, Strategy
from petzval.inference.plan import make_plan
from petzval.inference.planner import Planner
from petzval.inference.planning import Planning
from petzval.inference.projection import CACHE_VARIABLE
from petzval.inference.request import GenerationRequest
from petzval.inference.residency import Residency
from petzval.inference.task import NamedLora
from petzval.inference.terms import Budget, Terms
from petzval.inference.variants import locate
from petzval.kernels import backends
from petzval.weights.checkpoint import Checkpoint
from tests.inference.test_loras import write_lora
from tests.support import PATIENCE, QUICK_TO_READ

FOX = "A red fox sleeping under a birch tree"
SMALL: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 1.0, "seed": 3}
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
WORK = Work(grid=(3, 4), calls=2, branches=1, text_tokens=64)
INK: tuple[NamedLora, ...] = (("ink", 1.0),)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Predictions that do not depend on this machine nor on what the process holds."""
    monkeypatch.setattr("petzval.inference.planning.measured_speeds", lambda *_: QUICK_TO_READ)
    monkeypatch.setattr(Planner, "_process_bytes", lambda _: 0)
    monkeypatch.setattr(backends, "resident_bytes", lambda: 0)
    monkeypatch.setattr("petzval.inference.pipeline.default_work", lambda _: WORK)
    monkeypatch.setattr(projection, "_FIT_PICTURES", 2)
    monkeypatch.setattr(projection, "_FIT_SIDE", 64)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "previews"))


@pytest.fixture(scope="module")
def twins(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One checkpoint under two names."""
    folder = tmp_path_factory.mktemp("twins")
    return [Path(shutil.copytree(golden_checkpoint, folder / name)) for name in ("one", "two")]


@pytest.fixture(scope="module")
def peaks(pipeline: Pipeline) -> dict[str, int]:
    """For the usual picture: with all resident, that with everything at once, the least."""
    assert pipeline.planning is not None
    planner = Planner(
        pipeline.planning.checkpoint,
        pipeline.device,
        pipeline.dtype,
        WORK,
        QUICK_TO_READ,
        baseline=0,
    )
    stays = [each for each in planner.placements if each.stays]
    first = min(stays, key=lambda each: each.peak_bytes)
    return {
        "stays": first.peak_bytes,
        "at once": max(each.peak_at_once() for each in stays),
        "least": min(each.peak_bytes for each in planner.placements),
    }


def drawn(
    drawer: PipelineDrawer, model: str, loras: tuple[NamedLora, ...] = ()
) -> np.ndarray[Any, Any]:
    defaults = next(each.defaults for each in drawer.models if each.name == model)
    plan = make_plan(GenerationRequest(prompt=FOX, **SMALL), defaults)
    [*_, last] = drawer.draw(model, loras, plan)
    [image] = last.images if last.finish is None else last.finish()
    return image.pixels


def held(pipeline: Pipeline) -> int:
    networks = pipeline.networks
    return sum(
        weight.nbytes
        for network in (networks.encoder, networks.denoiser, networks.autoencoder)
        for weight in network.parameters()
        if not weight.is_meta
    )


@pytest.mark.parametrize("name", ["at once", "least"])
def test_models_and_loras_take_turns_under_one_limit(
    twins: list[Path], tmp_path: Path, pipeline: Pipeline, peaks: dict[str, int], name: str
) -> None:
    """Exact plans draw the same bytes, and nobody's weights are there beside another's."""
    style = write_lora(tmp_path / "ink.safetensors", twins[0], 0)
    [expected] = pipeline.generate(FOX, **SMALL)
    limit = peaks[name] + (0 if name == "at once" else 100_000)
    drawer = PipelineDrawer(twins, loras={"ink": style}, memory=limit, **OPTIONS)
    one, two = (drawer._loaded[each].pipeline for each in ("one", "two"))
    assert one.placement is not None and one.terms is not None
    assert one.terms.limits == Budget(memory=limit)
    assert one.placement.stays == (name == "at once")
    assert held(one) == 0  # while the other one was loaded
    same = np.array_equal if name == "at once" else _nearly
    for model, other in (("one", two), ("two", one), ("one", two)):
        assert same(drawn(drawer, model), expected.pixels)
        assert held(other) == 0 and not other._folded._folded and len(other.text.cache) == 0
    styled = drawn(drawer, "one", INK)
    [copy] = drawer._copies.values()
    assert held(one) == held(two) == 0
    assert copy.terms is not None and copy.terms.limits == one.terms.limits
    assert copy.placement is not None and copy.placement.peak_bytes <= limit
    assert not _nearly(styled, expected.pixels)
    assert same(drawn(drawer, "two"), expected.pixels)
    assert held(copy) == 0


def test_a_copy_that_gives_way_is_gone_before_the_next_is_loaded(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not some time later, when python collects what refers to itself."""
    names = ("ink", "chalk", "oil")
    loras = {
        name: write_lora(tmp_path / f"{name}.safetensors", golden_checkpoint, seed)
        for seed, name in enumerate(names)
    }
    drawer = PipelineDrawer([golden_checkpoint], loras=loras, **OPTIONS)
    [model] = drawer.models
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load = Checkpoint.load_denoiser

    def watched(self: Checkpoint, *arguments: Any, **options: Any) -> Any:
        alive.append(sum(each() is not None for each in made))
        network = load(self, *arguments, **options)
        made.append(weakref.ref(network))
        return network

    plan = make_plan(GenerationRequest(prompt=FOX, **SMALL), model.defaults)
    monkeypatch.setattr(Checkpoint, "load_denoiser", watched)
    gc.disable()
    try:
        for name in ("ink", "chalk", "ink", "oil", "chalk"):
            drawer._pipeline(model.name, ((name, 1.0),), plan)
    finally:
        gc.enable()
    assert alive == [0, 1, 1, 1]


def _nearly(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return bool(np.abs(a.astype(int) - b.astype(int)).max() <= 1)


def test_what_stays_in_place_is_drawn_as_without_a_plan(
    twins: list[Path], pipeline: Pipeline, peaks: dict[str, int]
) -> None:
    """Decoding is left to another thread, words are encoded ahead, previews fitted beside."""
    [expected] = pipeline.generate(FOX, **SMALL)
    drawer = PipelineDrawer(twins, memory=peaks["at once"], overlap=True, **OPTIONS)
    one = drawer._loaded["one"].pipeline
    plan = one.plan(FOX, **SMALL)
    assert one.moving.previews._stays()
    [*_, last] = drawer.draw("one", (), plan)
    assert last.images == () and last.finish is not None
    drawer.prepare("one", one.plan("words that come next", **SMALL))
    assert drawer._ahead is not None
    drawer._ahead.join(PATIENCE)
    before = drawer._ahead
    drawer.prepare("two", drawer._loaded["two"].pipeline.plan(FOX, **SMALL))
    assert drawer._ahead is before  # that encoder was put out
    drawn(drawer, "two")
    assert held(one) == 0
    assert np.array_equal(last.finish()[0].pixels, expected.pixels)  # decoded before it went


def test_where_there_is_no_room_for_two_stages_at_once_they_take_turns(
    twins: list[Path], peaks: dict[str, int]
) -> None:
    limit = peaks["stays"]
    assert limit < peaks["at once"]
    drawer = PipelineDrawer(twins[:1], memory=limit, overlap=True, **OPTIONS)
    one = drawer._loaded["one"].pipeline
    assert one.placement is not None and one.placement.stays
    plan = one.plan(FOX, **SMALL)
    assert not one.moving.previews._stays()
    [*_, last] = drawer.draw("one", (), plan)
    assert last.finish is None and len(last.images) == 1
    drawer.prepare("one", plan)
    assert drawer._ahead is None


MORE: dict[str, Any] = {**SMALL, "size": "80x64"}


@pytest.mark.parametrize("room", [False, True])
def test_more_than_was_planned_for_goes_on_beside_it_where_there_is_room(
    twins: list[Path], peaks: dict[str, int], room: bool
) -> None:
    """Else what waits is decoded first, and the next words are not encoded meanwhile."""
    limit = (4 if room else 1) * peaks["at once"]
    drawer = PipelineDrawer(twins[:1], memory=limit, overlap=True, **OPTIONS)
    one = drawer._loaded["one"].pipeline
    placement = one.placement
    [*_, last] = drawer.draw("one", (), one.plan(FOX, **SMALL))
    assert last.finish is not None
    more = one.plan(FOX, **MORE)
    assert not one.concurrent(more)  # nothing is reckoned before it is drawn
    [*_, other] = drawer.draw("one", (), more)
    assert one.placement is placement
    assert one.concurrent(more) == (other.finish is not None) == room
    assert any(each.waits for each in one.moving.decodings._waiting) == room
    assert last.finish()[0].pixels.std() > 0
    assert one.concurrent(one.plan(FOX, **SMALL)) == room


def test_what_may_meet_is_held_to_the_limit_together(pipeline: Pipeline) -> None:
    """A large picture and long words, neither of which needs as much of every network."""
    planning = pipeline.planning
    assert planning is not None

    def placed(work: Work) -> Placement:
        placements = planning.planner(work, 0).placements
        return next(each for each in placements if each.stays)

    large, long = replace(WORK, grid=(8, 8)), replace(WORK, text_tokens=256)
    usual, *others = placed(WORK), placed(large), placed(long)
    both = others[0].joined(others[1])
    assert both.peak_at_once() > max(each.peak_at_once() for each in others)
    for limit, expected in (
        (both.peak_at_once(), {"large": True, "long": True}),
        (both.peak_at_once() - 1, {"large": True, "long": False}),
        (usual.peak_at_once(), {"large": False, "long": False}),
    ):
        terms = Terms.of(Budget(memory=limit), usual, WORK)
        for work, placement in zip((large, long), others, strict=True):
            terms = terms.also(work, placement)
        beside = terms.concurrent
        assert beside is not None and beside.covers(WORK)
        assert {"large": beside.covers(large), "long": beside.covers(long)} == expected
        assert all(beside.knows(each) for each in (large, long))
        assert terms.cover(large) and terms.cover(long)
    assert Terms.of(Budget(memory=usual.peak_at_once() - 1), usual, WORK).concurrent is None


def test_a_plan_without_limits_that_stays_is_not_hindered(pipeline: Pipeline) -> None:
    assert pipeline.planning is not None
    planner = pipeline.planning.planner(WORK, 0)
    stays = next(each for each in planner.placements if each.stays)
    goes = next(each for each in planner.placements if not each.stays)
    residency = pipeline.moving.residency
    assert residency.concurrent()
    for placement in (stays, goes):
        assert Residency.follow(pipeline.planning.checkpoint, placement).concurrent() == (
            placement is stays
        )


def test_compiled_are_networks_that_stay(
    twins: list[Path], peaks: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(drawers, "compile_pipeline", compiled.append)
    drawer = PipelineDrawer(twins[:1], memory=peaks["at once"], compile=True, **OPTIONS)
    one = drawer._loaded["one"].pipeline
    assert compiled == [one]
    one.moving.moved()
    assert compiled == [one, one]
    limit = peaks["least"] + 100_000
    with pytest.warns(CompileWarning, match="left out for one, whose networks come and go"):
        PipelineDrawer(twins[:1], memory=limit, compile=True, **OPTIONS)
    assert len(compiled) == 2


# ── encoders elsewhere ────────────────────────────────────────────────────────────────────────────


def test_who_does_not_encode_plans_without_an_encoder(golden_checkpoint: Path) -> None:
    class Elsewhere(PromptEncoder):
        """Somebody else's."""

    whole = Pipeline.load(golden_checkpoint, memory="1GB", **OPTIONS)
    theirs = Elsewhere(whole.networks.encoder, whole.text.tokenizer, checkpoint_id=whole.identity)
    without = Pipeline.load(golden_checkpoint, memory="1GB", text=theirs, **OPTIONS)
    assert without.placement is not None and whole.placement is not None
    encoder = without.placement.of(ENCODER)
    assert (encoder.weight_bytes, encoder.working_bytes, encoder.seconds) == (0, 0, 0.0)
    assert encoder.kept_bytes == whole.placement.of(ENCODER).kept_bytes
    assert all(weight.is_meta for weight in without.networks.encoder.parameters())
    assert without.placement.peak_bytes < whole.placement.peak_bytes


def test_a_lone_encoder_keeps_the_limits(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(memory: int | None) -> PromptEncoder:
        return load_prompt_encoder(
            Planning.open(
                locate(golden_checkpoint),
                (),
                budget=Budget(memory=memory),
                storage="exact",
                **OPTIONS,
            )
        )

    whole = loaded(None)
    [expected] = whole.encode([FOX])
    roomy = loaded(1_000_000_000)
    [same] = roomy.encode([FOX])
    assert all(map(torch.equal, same.layers, expected.layers))
    with pytest.raises(PlacementError, match="the text encoder alone needs"):
        loaded(1000)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert held_bytes(roomy, cuda) == roomy.cache.max_bytes  # its numbers are elsewhere
    held: list[int] = []
    for kept in (5, 2, 0):
        strategy = Strategy(residence="streamed", device="cpu", kept_layers=kept)
        monkeypatch.setattr(
            lone_encoder, "_strategy", lambda *_, strategy=strategy, **__: (strategy, 0)
        )
        streamed = loaded(1_000_000_000)
        assert not streamed.use_prefix_cache
        held.append(held_bytes(streamed, cpu))
        [near] = streamed.encode([FOX])
        for layer, other in zip(near.layers, expected.layers, strict=True):
            assert torch.allclose(layer, other, rtol=1e-4, atol=1e-5)
        assert held_bytes(streamed, cpu) == held[-1]
    assert held_bytes(roomy, cpu) > held[0] > held[1] > held[2]
