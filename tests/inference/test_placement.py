"""Plans of memory, followed: the picture they lead to, and what happens where memory runs out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petzval.errors import PetzvalError, PlacementError
from petzval.inference import planning as planning_module
from petzval.inference.dry_networks import Work
from petzval.inference.footprint import Footprints
from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import (
    AUTOENCODER,
    DENOISER,
    ENCODER,
    Placement,
    Residence,
    Storage,
    Strategy,
)
from petzval.inference.planner import Budget, Planner
from petzval.inference.planning import MemoryWarning, Planning
from petzval.inference.residency import Residency
from petzval.kernels import backends
from petzval.weights.checkpoint import Checkpoint
from tests.support import QUICK_TO_READ, SPEEDS

CPU = torch.device("cpu")
FOX = "A red fox sleeping under a birch tree"
SMALL: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 2.0, "seed": 3}
WORK = Work(grid=(4, 3), calls=2, branches=2, text_tokens=40)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that depend neither on how fast this machine is now nor on what the process holds."""
    monkeypatch.setattr(planning_module, "measured_speeds", lambda *machine: QUICK_TO_READ)
    monkeypatch.setattr(backends, "resident_bytes", lambda: 400_000_000)


@pytest.fixture(scope="module")
def checkpoint(golden_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(golden_checkpoint)


def planner_of(checkpoint: Checkpoint, device: str = "cpu", **changes: Any) -> Planner:
    options: dict[str, Any] = {"baseline": 0} | changes
    return Planner(checkpoint, torch.device(device), torch.float32, WORK, SPEEDS, **options)


def _with_loaded(pipeline: Pipeline, placement: Placement) -> Pipeline:
    """The pipeline of the fixture, its networks as a placement has them."""
    planning = pipeline.planning
    assert planning is not None
    residency = planning.follow(placement)
    fresh = Pipeline.load(planning.checkpoint.folder, device="cpu", dtype="float32")
    fresh.moving.adopt(residency)
    return fresh


# ── the picture ───────────────────────────────────────────────────────────────────────────────────

_FORMS: tuple[tuple[str, Residence, Residence, bool, Residence, int], ...] = (
    ("all resident", "resident", "resident", False, "resident", 0),
    ("staged", "staged", "staged", False, "staged", 0),
    ("staged and folded", "staged", "staged", True, "staged", 0),
    ("blocks streamed", "staged", "streamed", True, "resident", 0),
)
EXACT: dict[str, tuple[Strategy, Strategy, Strategy]] = {
    name: (
        Strategy(residence=encoder, device="cpu"),
        Strategy(residence=denoiser, device="cpu", folded=folded),
        Strategy(residence=decoder, device="cpu", strip_rows=rows),
    )
    for name, encoder, denoiser, folded, decoder, rows in _FORMS
}


def placed(checkpoint: Checkpoint, strategies: tuple[Strategy, ...]) -> Placement:
    """These strategies, reckoned for `WORK`."""
    footprints = Footprints(checkpoint, torch.float32, WORK, SPEEDS)
    networks = zip((ENCODER, DENOISER, AUTOENCODER), strategies, strict=True)
    return Placement(
        device="cpu",
        dtype="float32",
        height=64,
        width=48,
        steps=2,
        text_tokens=40,
        networks=tuple(footprints.of(*pair) for pair in networks),
        baseline_bytes=0,
    )


@pytest.mark.parametrize("name", sorted(EXACT))
def test_exact_placements_draw_the_resident_picture_bit_for_bit(
    pipeline: Pipeline, checkpoint: Checkpoint, name: str
) -> None:
    prompts = [FOX, "two words"]
    expected = pipeline.generate(prompts, negative_prompt="blurry", **SMALL)
    other = _with_loaded(pipeline, placed(checkpoint, EXACT[name]))
    events = list(other.steps(prompts, negative_prompt="blurry", **SMALL))
    got = [image for event in events for image in event.images]
    assert [g.encode() for g in got] == [e.encode() for e in expected]


def test_streamed_encoder_and_strips_draw_it_to_rounding(
    pipeline: Pipeline, checkpoint: Checkpoint
) -> None:
    strategies = (
        Strategy(residence="streamed", device="cpu"),
        Strategy(residence="streamed", device="cpu", folded=True),
        Strategy(residence="staged", device="cpu", strip_rows=16),
    )
    [expected] = pipeline.generate(FOX, **SMALL)
    other = _with_loaded(pipeline, placed(checkpoint, strategies))
    event = next(iter(other.steps(FOX, **SMALL)))
    assert event.preview().shape == (1, 48, 64, 3)  # puts the denoiser out; it is brought again
    [got] = other.generate(FOX, **SMALL)
    assert np.abs(got.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1
    held = sum(
        t.nbytes for t in other.moving.residency.networks.denoiser.parameters() if not t.is_meta
    )
    assert held == 0  # the decoder ran last, so the denoiser is gone


def test_what_is_put_out_is_gone_whoever_holds_it(
    pipeline: Pipeline, checkpoint: Checkpoint
) -> None:
    other = _with_loaded(pipeline, placed(checkpoint, EXACT["staged"]))
    denoiser = other.denoiser
    assert not any(weight.is_meta for weight in denoiser.parameters())
    assert not any(weight.is_meta for weight in other.autoencoder.parameters())
    assert all(weight.is_meta for weight in denoiser.parameters())
    assert other.denoiser is denoiser


def test_a_limit_of_memory_is_planned_for_and_followed(golden_checkpoint: Path) -> None:
    drawn = Pipeline.load(golden_checkpoint, device="cpu", memory="2GB", request=FOX)
    assert drawn.placement is not None
    assert drawn.placement.peak_bytes < 2e9
    [image] = drawn.generate(FOX, **SMALL)
    assert image.recipe.weights == "exact"
    with pytest.raises(PlacementError, match="fits in 10 MB of memory"):
        Pipeline.load(golden_checkpoint, device="cpu", memory="10MB")


# ── out of memory ─────────────────────────────────────────────────────────────────────────────────


def test_out_of_memory_becomes_a_smaller_plan(
    golden_checkpoint: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    [expected] = pipeline.generate(FOX, **SMALL)
    other = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32", memory="4GB")
    first = other.placement
    assert first is not None
    kept: list[BaseException] = []
    denoiser = other.denoiser
    forward = denoiser.forward

    def fail(*arguments: Any, **options: Any) -> torch.Tensor:
        del arguments, options
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        kept.append(error)
        raise error

    monkeypatch.setattr(denoiser, "forward", fail)
    planner = planner_of(Checkpoint.open(golden_checkpoint))
    monkeypatch.setattr(Planning, "planner", lambda *_: planner)
    placement = planner.choose(Budget())
    other.moving.residency.placement = placement
    with pytest.warns(MemoryWarning, match="memory ran out; going on with: text encoder"):
        [got] = other.generate(FOX, **SMALL)
    assert other.placement is not None
    assert other.placement.peak_bytes <= 0.9 * placement.peak_bytes
    assert np.abs(got.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1
    assert all(weight.is_meta for weight in denoiser.parameters())  # the old plan's is gone
    assert len(kept) == 1
    del forward


def test_out_of_memory_while_loading_is_planned_around(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Checkpoint, "load_vae", fail)
    planner = planner_of(Checkpoint.open(golden_checkpoint))
    monkeypatch.setattr(Planning, "planner", lambda *_: planner)
    loaded = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32")
    assert loaded.placement == planner.choose(Budget())


def test_a_cpu_without_room_is_planned_for_before_the_system_ends_it(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux gives memory that it has not, and kills whoever uses it: nothing is raised."""
    free = 200_000_000
    monkeypatch.setattr(backends, "memory_info", lambda device: (free, 4 * free))
    monkeypatch.setattr(planning_module, "total_bytes", lambda source: 60_000_000)
    small = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32")
    assert small.placement is not None  # 120 MB as stored may be 240 MB in float32
    assert small.placement.peak_bytes <= 0.92 * free + backends.resident_bytes()
    stored = Pipeline.load(golden_checkpoint, device="cpu", dtype="bfloat16")
    assert stored.placement is None  # in the type of the files they fit


def test_what_a_budget_leaves_open_is_what_is_free(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card of 24 GB in a computer with 8: no plan takes 12 GB of RAM."""
    planning = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32").planning
    assert planning is not None
    card = dataclasses.replace(planning, device=torch.device("meta"))
    sizes = {"meta": (24 * 10**9, 25 * 10**9), "cpu": (8 * 10**9, 9 * 10**9)}
    monkeypatch.setattr(backends, "memory_info", lambda device: sizes[device.type])
    monkeypatch.setattr(backends, "present", lambda device: True)
    monkeypatch.setattr(backends, "resident_bytes", lambda: 10**9)
    ram = int(0.92 * 8e9) + 10**9
    assert card.limits() == Budget(memory=int(0.92 * 24e9), ram=ram)
    for given in (Budget(memory=10**9), Budget(ram=10**9)):
        some = dataclasses.replace(card, budget=given).limits()
        assert some.memory == (given.memory or int(0.92 * 24e9))
        assert some.ram == (given.ram or ram)
    promised = dataclasses.replace(card, budget=Budget(memory=10**11, ram=10**9))
    assert promised.limits().memory == 10**11
    assert promised._limits_now() == Budget(memory=int(0.92 * 24e9), ram=10**9)
    monkeypatch.setattr(backends, "present", lambda device: False)
    assert card.limits() == Budget()  # planned for from elsewhere


def test_other_errors_are_not_taken_for_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(pipeline.denoiser, "forward", fail)
    with pytest.raises(RuntimeError, match="size mismatch"):
        pipeline.generate(FOX, **SMALL)


def test_where_nothing_can_be_planned_it_is_one_line(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> torch.Tensor:
        raise MemoryError

    fixed = Pipeline(
        name="given",
        identity="0",
        text=pipeline.text,
        denoiser=pipeline.denoiser,
        autoencoder=pipeline.autoencoder,
        defaults=pipeline.defaults,
    )
    monkeypatch.setattr(pipeline.denoiser, "forward", fail)
    with pytest.raises(PlacementError, match="memory ran out at 64x48"):
        fixed.generate(FOX, **SMALL)


# ── quantised and half ────────────────────────────────────────────────────────────────────────────

PSNR: dict[Storage, float] = {"int8": 27.0, "float8": 20.0, "int4": 13.0}
"""Least PSNR in dB of mini's picture against the exact one; docs/guides/memory.md states it."""


@pytest.fixture(scope="module")
def exact_mini() -> np.ndarray[Any, Any]:
    return Pipeline.load("mini", device="cpu").generate(APPLE, **OPTIONS)[0].pixels


APPLE = "a red apple on a light blue background"
OPTIONS: dict[str, Any] = {"size": "128x128", "steps": 8, "guidance": 4.0, "seed": 0}


@pytest.mark.parametrize("storage", sorted(PSNR))
def test_quantised_pictures_of_mini_are_as_near_as_stated(
    exact_mini: np.ndarray[Any, Any], storage: Storage
) -> None:
    [image] = Pipeline.load("mini", device="cpu", quantise=storage).generate(APPLE, **OPTIONS)
    assert image.recipe.weights == storage
    error = np.square(image.pixels.astype(float) - exact_mini.astype(float)).mean()
    psnr = 10 * np.log10(255**2 / error)
    assert PSNR[storage] < psnr < 60, psnr


def test_float16_draws_the_picture_of_float32(exact_mini: np.ndarray[Any, Any]) -> None:
    [image] = Pipeline.load("mini", device="cpu", dtype="float16").generate(APPLE, **OPTIONS)
    assert image.recipe.dtype == "float16"
    error = np.square(image.pixels.astype(float) - exact_mini.astype(float)).mean()
    assert 10 * np.log10(255**2 / max(float(error), 1e-9)) > 35


def test_mistakes_are_answered_before_anything_is_loaded(golden_checkpoint: Path) -> None:
    for options in ({"memory": "lots"}, {"ram": "-1"}, {"quantise": "int3"}):
        with pytest.raises(PetzvalError):
            Pipeline.load(golden_checkpoint, device="cpu", **options)  # pyright: ignore[reportArgumentType]
    assert Residency.__doc__


def test_the_recipe_says_what_auto_chose(golden_checkpoint: Path) -> None:
    planning = Pipeline.load(
        golden_checkpoint, device="cpu", dtype="float32", quantise="auto"
    ).planning
    assert planning is not None
    free = Pipeline.load(golden_checkpoint, device="cpu", dtype="float32", quantise="auto")
    assert free.generate(FOX, **SMALL)[0].recipe.weights == "exact"
    placement = next(
        each
        for each in planning.planner(WORK)._of("int8")
        if each.of(DENOISER).strategy.residence == "staged"
    )
    free.moving.adopt(planning.follow(placement))
    assert free.generate(FOX, **SMALL)[0].recipe.weights == "int8"
