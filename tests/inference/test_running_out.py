"""Memory that runs out while networks are loaded: a smaller plan, or one line; and life goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from petzval.errors import PlacementError
from petzval.inference import stage
from petzval.inference.drawer import PipelineDrawer
from petzval.inference.dry_networks import Work
from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import Placement
from petzval.inference.planner import Planner
from petzval.inference.planning import MemoryWarning, Planning
from petzval.inference.preview import SmallPreviews
from petzval.inference.request import GeneratedImage
from petzval.inference.terms import Budget, Terms
from petzval.inference.way_back import WayBack
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import changed_layers
from petzval.weights.residence import fill
from tests.inference.test_fitting import FOX, SMALL, SPEEDS, planned, planner_of
from tests.inference.test_loras import write_lora

NETWORKS: dict[str, type[nn.Module]] = {
    "encoder": GptOssEncoder,
    "denoiser": MMDiT,
    "autoencoder": Autoencoder,
}


_PLANNERS: dict[object, Planner] = {}


@pytest.fixture(autouse=True)
def planners(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests reckon with the same ones, as if the process held nothing before."""

    def known(self: Planning, work: Work, baseline: int | None = None) -> Planner:
        del baseline
        changed = changed_layers(self.merged)
        key = work, bool(changed)
        if key not in _PLANNERS:
            its = self.checkpoint, self.device, self.dtype, work, SPEEDS
            _PLANNERS[key] = Planner(*its, baseline=0, changed=changed)
        return _PLANNERS[key]

    monkeypatch.setattr(Planning, "planner", known)


@pytest.fixture(scope="module")
def expected(golden_checkpoint: Path) -> GeneratedImage:
    return planned(golden_checkpoint).generate(FOX, **SMALL)[0]


class Starved:
    """Networks that memory ran out for: they were filled, and then there was an error."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, network: str, times: int, error: type[BaseException]
    ) -> None:
        self.networks: list[nn.Module] = []

        def starving(module: nn.Module, *arguments: Any, **options: Any) -> None:
            fill(module, *arguments, **options)
            if isinstance(module, NETWORKS[network]) and len(self.networks) < times:
                self.networks.append(module)
                raise error("as if there were no memory: out of memory")

        monkeypatch.setattr(stage, "fill", starving)

    @property
    def held(self) -> bool:
        """Whether anything of them is still there."""
        return any(
            not each.is_meta
            for network in self.networks
            for each in (*network.parameters(), *network.buffers())
        )


def starve(
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    times: int = 1,
    error: type[BaseException] = torch.OutOfMemoryError,
) -> Starved:
    return Starved(monkeypatch, network, times, error)


def resident(pipeline: Pipeline) -> Placement:
    return next(each for each in planner_of(pipeline, FOX, **SMALL).placements if each.stays)


def is_drawn(pipeline: Pipeline, expected: GeneratedImage) -> bool:
    """Whether it draws, up to rounding, what it should."""
    [got] = pipeline.generate(FOX, **SMALL)
    return bool(np.abs(got.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1)


# ── another placement is loaded ───────────────────────────────────────────────────────────────────


def shrinks(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planning, "smaller", _first(resident(pipeline), Planning.smaller))
    pipeline.moving.shrink(pipeline.plan(FOX, **SMALL), 1)


def makes_room(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = pipeline.moving.fitting
    fit = dataclasses.replace(
        fitting.of(pipeline.moving.residency, pipeline.plan(FOX, **SMALL), 1),
        placement=resident(pipeline),
        terms=Terms(limits=Budget()),
    )
    monkeypatch.setattr(fitting, "of", lambda *_: fit)
    pipeline.moving.make_room(pipeline.plan(FOX, **SMALL), 1)
    monkeypatch.undo()


def goes_back(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting, placements = pipeline.moving.fitting, planner_of(pipeline, FOX, **SMALL).placements
    away = min(placements, key=lambda each: each.peak_bytes)
    pipeline.moving.residency.release()
    assert pipeline.planning is not None
    pipeline.moving.adopt(pipeline.planning.follow(away))  # where nothing stays
    fitting._way_back._home = resident(pipeline), Terms(limits=Budget())
    monkeypatch.setattr(WayBack, "after", lambda self, *_: self._home)
    pipeline.moving.make_room(pipeline.plan(FOX, **SMALL), 1)
    assert not fitting._way_back.is_away(pipeline.moving.residency)  # nor is it tried again


def _first(placement: Placement, then: Callable[..., Placement]) -> Callable[..., Placement]:
    waiting = [placement]
    return lambda *given: waiting.pop() if waiting else then(*given)


@pytest.mark.parametrize("way", [shrinks, makes_room, goes_back])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_placement_that_cannot_be_loaded_gives_way_to_a_smaller_one(
    golden_checkpoint: Path,
    expected: GeneratedImage,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Pipeline, pytest.MonkeyPatch], None],
    network: str,
) -> None:
    pipeline = planned(golden_checkpoint)
    large, before = resident(pipeline), pipeline.networks
    starved = starve(monkeypatch, network)
    with pytest.warns(MemoryWarning, match="memory ran out; going on with"):
        way(pipeline, monkeypatch)
    assert len(starved.networks) == 1 and not starved.held
    assert all(weight.is_meta for weight in before.denoiser.parameters())
    assert pipeline.placement is not None
    assert pipeline.placement.peak_bytes <= 0.9 * large.peak_bytes
    assert is_drawn(pipeline, expected)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_the_first_placement_gives_way_to_a_smaller_one(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    pipeline = planned(golden_checkpoint, 10**11)
    planning, large = pipeline.planning, resident(pipeline)
    assert planning is not None
    work = planning.work(pipeline.plan(FOX, **SMALL))
    starved = starve(monkeypatch, network)
    placement = planning.settle(work).placement
    assert len(starved.networks) == 1 and not starved.held
    assert placement is not None and placement.peak_bytes <= 0.9 * large.peak_bytes


def test_where_nothing_can_be_loaded_the_pipeline_keeps_what_it_had(
    golden_checkpoint: Path, expected: GeneratedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = planned(golden_checkpoint)
    first = pipeline.placement
    with monkeypatch.context() as patch:
        patch.setattr(Planning, "smaller", _first(resident(pipeline), Planning.smaller))
        patch.setattr("petzval.inference.planner._STEP_DOWN", 0.01)
        starved = starve(patch, "denoiser")
        with (
            pytest.warns(MemoryWarning),
            pytest.raises(PlacementError, match="no plan for 64x48 needs clearly less"),
        ):
            pipeline.moving.shrink(pipeline.plan(FOX, **SMALL), 1)
    assert starved.networks and not starved.held
    assert pipeline.placement is first
    [again] = pipeline.generate(FOX, **SMALL)
    assert again.encode() == expected.encode()


def test_an_interrupted_move_leaves_a_pipeline_that_draws(
    golden_checkpoint: Path, expected: GeneratedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was there for good; nothing is loaded again behind the back of who interrupts."""
    pipeline = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr(Planning, "smaller", _first(resident(pipeline), Planning.smaller))
        starved = starve(patch, "autoencoder", error=KeyboardInterrupt)
        with pytest.warns(MemoryWarning), pytest.raises(KeyboardInterrupt):
            pipeline.moving.shrink(pipeline.plan(FOX, **SMALL), 1)
    assert not starved.held
    assert all(weight.is_meta for weight in pipeline.networks.denoiser.parameters())
    assert is_drawn(pipeline, expected)


# ── copies with LoRAs ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["loaded", "drawn", "decoded later"])
def test_where_base_and_copy_have_no_room_beside_each_other_they_take_turns(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    style = write_lora(tmp_path / "ink.safetensors", golden_checkpoint, 0)
    monkeypatch.setattr(SmallPreviews, "begin", lambda _: None)
    drawer = PipelineDrawer(
        [golden_checkpoint], loras={"ink": style}, device="cpu", dtype="float32", overlap=True
    )
    [model] = drawer.models
    base = drawer._loaded[model.name].pipeline
    ink = (("ink", 1.0),)
    plan = base.plan(FOX, **SMALL)
    merged = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32", lora=style)
    [expected] = merged.generate(FOX, **SMALL)
    if where == "decoded later":  # the base moves meanwhile
        [*_, last] = drawer.draw(model.name, ink, plan)
        assert last.finish is not None
        with pytest.warns(MemoryWarning):
            base.moving.shrink(plan, 1)
        assert not drawer._copies
        [image] = last.finish()
        assert image.encode() == expected.encode()
        return

    def fail(*_: object, **__: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if where == "loaded":
        monkeypatch.setattr(Checkpoint, "load_denoiser", fail)
    else:
        copy = drawer._pipeline(model.name, ink, plan)
        monkeypatch.setattr(copy.networks.denoiser, "forward", fail)
    with pytest.warns(MemoryWarning, match="memory ran out; going on with"):
        [*_, last] = drawer.draw(model.name, ink, plan)
    [image] = last.images if last.finish is None else last.finish()
    assert base.placement is not None
    assert all(weight.is_meta for weight in base.networks.denoiser.parameters())
    assert np.abs(image.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1


# ── fewer at a time ───────────────────────────────────────────────────────────────────────────────


def test_where_no_plan_is_smaller_fewer_pictures_run_together(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = planned(golden_checkpoint)
    options: dict[str, Any] = {**SMALL, "guidance": 1.0}
    alone = pipeline.generate(FOX, num_images=4, **options)
    smallest = min(
        planner_of(pipeline, FOX, 4, num_images=4, **options).placements,
        key=lambda each: each.peak_bytes,
    )
    assert pipeline.planning is not None
    pipeline.moving.adopt(pipeline.planning.follow(smallest))
    velocity, sizes = MMDiT.forward, list[int]()

    def tight(self: MMDiT, tokens: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if not tokens.is_meta:  # else it is only reckoned with
            sizes.append(tokens.shape[0])
        if not tokens.is_meta and tokens.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return velocity(self, tokens, *rest, **more)

    monkeypatch.setattr(MMDiT, "forward", tight)
    with pytest.warns(MemoryWarning) as told:
        images = pipeline.generate(FOX, batch_size=4, num_images=4, **options)
    ran_out, fewer = (str(each.message) for each in told)
    assert ran_out.startswith("memory ran out; going on with")
    assert fewer == "memory has room for 2 pictures at a time, not 4"
    assert sizes == [4, 2, 2, 2, 2]
    assert [image.index for image in images] == [0, 1, 2, 3]
    for got, want in zip(images, alone, strict=True):
        assert np.abs(got.pixels.astype(int) - want.pixels.astype(int)).max() <= 1
