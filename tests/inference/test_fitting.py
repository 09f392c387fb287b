"""Requests beyond what a placement was chosen for: another one, fewer at a time, or one line."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import torch

from petzval.conditioning.encoder import PromptEncoder
from petzval.errors import PlacementError
from petzval.inference import planning
from petzval.inference.dry_networks import Work
from petzval.inference.footprint import Footprints
from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import (
    AUTOENCODER,
    DENOISER,
    ENCODER,
    Placement,
    Residence,
    Strategy,
)
from petzval.inference.planner import Planner
from petzval.inference.planning import MemoryWarning, Planning
from petzval.inference.request import GenerationRequest
from petzval.inference.residency import Residency
from petzval.inference.terms import Budget, Terms
from petzval.kernels import backends
from petzval.models.gpt_oss import GptOssEncoder
from petzval.weights.checkpoint import Checkpoint
from tests.support import QUICK_TO_READ, SPEEDS

FOX = "A red fox sleeping under a birch tree"
SMALL: dict[str, Any] = {"size": "64x48", "steps": 2, "guidance": 2.0, "seed": 3}
LARGE: dict[str, Any] = {**SMALL, "size": "256x256"}
NARROW: dict[str, Any] = {**SMALL, "size": "128x256"}


def planned(folder: Path, limit: int | None = None, **options: Any) -> Pipeline:
    """A pipeline whose placement was chosen for `SMALL` and may take `limit` bytes."""
    loaded = Pipeline.load(folder, device="cpu", dtype="float32")
    assert loaded.planning is not None
    budget = Budget(memory=limit)
    planning = dataclasses.replace(loaded.planning, speeds=SPEEDS, budget=budget)
    work = planning.work(loaded.plan(FOX, **{**SMALL, **options}))
    placement = planning.planner(work, 0).choose(budget)
    residency = planning.follow(placement, Terms(limits=budget, works=(work,)))
    networks = residency.networks
    return Pipeline(
        name=loaded.name,
        identity=loaded.identity,
        text=PromptEncoder(
            networks.encoder, planning.tokenizer, checkpoint_id=planning.checkpoint.identity
        ),
        denoiser=networks.denoiser,
        autoencoder=networks.autoencoder,
        defaults=loaded.defaults,
        residency=residency,
        planning=planning,
    )


def planner_of(pipeline: Pipeline, prompt: Any, batch_size: int = 1, **options: Any) -> Planner:
    assert pipeline.planning is not None
    plan = pipeline.plan(prompt, **options)
    return pipeline.planning.planner(pipeline.planning.work(plan, batch_size=batch_size), 0)


def peak(pipeline: Pipeline, prompt: Any, batch_size: int = 1, **options: Any) -> int:
    """What the placement in force would need, at least, for other pictures."""
    assert pipeline.placement is not None
    return planner_of(pipeline, prompt, batch_size, **options).again(pipeline.placement).peak_bytes


@pytest.fixture(scope="module")
def loose(golden_checkpoint: Path) -> Pipeline:
    return planned(golden_checkpoint)


@pytest.fixture(scope="module")
def least(loose: Pipeline) -> int:
    """The least that `LARGE` can be drawn with, prompts of a rounded length."""
    return min(each.peak_bytes for each in planner_of(loose, FOX, **LARGE).placements)


def unencoded(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing is encoded."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the encoder ran")

    pipeline.text.cache.clear()
    monkeypatch.setattr(GptOssEncoder, "forward", refuse)


# ── the planner knows the batch ───────────────────────────────────────────────────────────────────


def test_a_batch_needs_as_many_activations(golden_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(golden_checkpoint)
    one = Work(grid=(16, 16), calls=2, branches=2)
    four = dataclasses.replace(one, batch=4, text_batch=4, all_texts=4)
    assert four.covers(one)
    assert not one.covers(four)

    def working(
        work: Work, network: str, residence: Residence = "staged", strip_rows: int = 0
    ) -> int:
        strategy = Strategy(residence=residence, device="cpu", strip_rows=strip_rows)
        footprints = Footprints(checkpoint, torch.float32, work, SPEEDS)
        return footprints.of(network, strategy).working_bytes

    for network in (DENOISER, AUTOENCODER):
        assert 3.5 < working(four, network) / working(one, network) <= 4.0
    ratio = working(four, AUTOENCODER, strip_rows=8) / working(one, AUTOENCODER, strip_rows=8)
    assert 3.5 < ratio <= 4.0
    assert 1.5 < working(four, ENCODER) / working(one, ENCODER) <= 4.0
    lone = dataclasses.replace(four, batch=1)  # an encoder that stays reads words as they come
    assert working(lone, ENCODER, "resident") == working(one, ENCODER, residence="resident")
    assert working(lone, ENCODER) == working(four, ENCODER)


def test_a_plan_says_how_many_texts_run_together(loose: Pipeline) -> None:
    assert loose.planning is not None
    prompts = ["a red fox", "a tan fox", "an old owl that reads"]
    plan = loose.plan(prompts, num_images=2, negative_prompt="blurry", **SMALL)
    work = loose.planning.work(plan, batch_size=4)
    assert (work.batch, work.texts, work.text_batch, work.all_texts) == (4, 2, 2, 4)
    assert loose.planning.work(plan, batch_size=99).batch == 6
    alone = loose.plan(prompts[0], **{**SMALL, "guidance": 1.0})
    work = loose.planning.work(alone, batch_size=4)
    assert (work.batch, work.branches, work.texts, work.text_batch, work.all_texts) == (1,) * 5


# ── what fits stays ───────────────────────────────────────────────────────────────────────────────


def test_what_fits_keeps_its_placement_and_is_reckoned_once(
    golden_checkpoint: Path, loose: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = planned(golden_checkpoint, 2 * peak(loose, FOX, **LARGE))
    residency = pipeline.moving.residency
    asked: list[Work] = []
    reckon = Planning.planner

    def count(self: Planning, work: Work, baseline: int | None = None) -> Planner:
        asked.append(work)
        return reckon(self, work, baseline)

    monkeypatch.setattr(Planning, "planner", count)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)
        pipeline.generate("a fox", **SMALL)
        assert asked == []  # no more than was planned for
        pipeline.generate(FOX, **LARGE)
        assert len(asked) == 1
        pipeline.generate(FOX + ".", **LARGE)
        pipeline.generate(FOX, **NARROW)
    assert len(asked) == 1
    assert pipeline.moving.residency is residency


def test_without_a_limit_everything_is_drawn_as_asked(
    loose: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planning, "work", lambda *_, **__: pytest.fail("reckoned"))
    events = list(loose.steps([FOX, FOX], batch_size=2, **SMALL))
    assert [event.indices for event in events] == [(0, 1)] * 2


# ── what does not ─────────────────────────────────────────────────────────────────────────────────


def test_a_larger_picture_gets_a_smaller_placement_before_it_starts(
    golden_checkpoint: Path, loose: Pipeline, least: int
) -> None:
    [expected] = loose.generate(FOX, **LARGE)
    limit = (least + peak(loose, FOX, **LARGE)) // 2
    pipeline = planned(golden_checkpoint, limit)
    first, denoiser = pipeline.placement, pipeline.denoiser
    assert first is not None
    assert peak(pipeline, FOX, **LARGE) > limit
    with pytest.warns(MemoryWarning, match="256x256 needs more memory than was planned for; going"):
        [got] = pipeline.generate(FOX, **LARGE)
    assert pipeline.placement is not None
    assert pipeline.placement.peak_bytes <= limit
    assert (pipeline.placement.height, pipeline.placement.width) == (256, 256)
    assert all(weight.is_meta for weight in denoiser.parameters())  # put out
    assert np.abs(got.pixels.astype(int) - expected.pixels.astype(int)).max() <= 1
    residency = pipeline.moving.residency
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)
        pipeline.generate(FOX, **LARGE)
        pipeline.generate(FOX, **SMALL)
    assert pipeline.moving.residency is residency  # both fit now


def test_what_nothing_has_room_for_is_refused_at_the_call(
    golden_checkpoint: Path, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = planned(golden_checkpoint, least - 1)
    residency = pipeline.moving.residency
    unencoded(pipeline, monkeypatch)
    with pytest.raises(PlacementError) as caught:
        pipeline.steps(FOX, batch_size=3, num_images=3, **LARGE)
    assert "no plan for 256x256 fits in" in caught.value.message
    for words in ("give --memory ", "draw a smaller --size", "64x48 fits"):
        assert words in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    assert pipeline.moving.residency is residency  # and goes on with what fits
    monkeypatch.undo()
    assert pipeline.generate(FOX, **SMALL)[0].pixels.std() > 0


def test_a_longer_prompt_counts(golden_checkpoint: Path, loose: Pipeline) -> None:
    """Not the size alone: here it is the words that do not fit."""
    long = " ".join(["a fox and an owl"] * 60)
    placements = planner_of(loose, long, **SMALL).placements
    limit = min(each.peak_bytes for each in placements) - 1
    assert peak(loose, FOX, **SMALL) < limit * 2
    pipeline = planned(golden_checkpoint, max(limit, _least(loose, FOX)))
    with pytest.raises(PlacementError) as caught:
        pipeline.steps(long, **SMALL)
    assert "48x64" not in caught.value.hint  # a smaller size is not what is known to fit
    assert "fits" not in caught.value.hint


def _least(pipeline: Pipeline, prompt: str) -> int:
    return min(each.peak_bytes for each in planner_of(pipeline, prompt, **SMALL).placements)


def test_more_at_a_time_than_there_is_room_for_become_fewer(
    golden_checkpoint: Path, loose: Pipeline
) -> None:
    """The pictures are the same, and nothing moves."""
    prompts = ["a red fox", "a tan fox", "an owl", "the old green owl that reads"]
    expected = loose.generate(prompts, **LARGE)
    limit = int(1.1 * peak(loose, prompts, 2, **LARGE))
    pipeline = planned(golden_checkpoint, limit, size="256x256")
    residency = pipeline.moving.residency
    with pytest.warns(MemoryWarning, match="room for 2 pictures at a time, not 4"):
        events = list(pipeline.steps(prompts, batch_size=4, **LARGE))
    assert [len(event.indices) for event in events] == [2] * 4
    assert pipeline.moving.residency is residency
    got = {image.index: image for event in events for image in event.images}
    for index, picture in enumerate(expected):
        difference = got[index].pixels.astype(int) - picture.pixels.astype(int)
        assert np.abs(difference).max() <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)
        assert len(pipeline.generate(prompts, batch_size=2, **LARGE)) == 4


def test_a_larger_batch_of_larger_pictures_moves_and_shrinks(
    golden_checkpoint: Path, loose: Pipeline, least: int
) -> None:
    limit = (least + peak(loose, FOX, **LARGE)) // 2
    pipeline = planned(golden_checkpoint, limit)
    with pytest.warns(MemoryWarning):
        events = list(pipeline.steps(FOX, batch_size=4, num_images=4, **LARGE))
    assert pipeline.placement is not None
    assert peak(pipeline, FOX, len(events[0].indices), num_images=4, **LARGE) <= limit
    assert sum(len(event.images) for event in events) == 4


def test_many_texts_at_once_become_fewer_where_the_encoder_has_no_room(
    golden_checkpoint: Path, loose: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = _alike(loose, [f"{'a fox and an owl ' * 50}{letter}" for letter in ascii_lowercase])[:8]
    options: dict[str, Any] = {**SMALL, "guidance": 1.0}
    placement = _staged(loose, words, options)
    assert loose.planning is not None
    plan = loose.plan(words, **options)
    work = loose.planning.work(plan)
    assert (work.text_batch, work.batch) == (8, 1)
    work = dataclasses.replace(work, text_tokens=-(-work.text_tokens // 32) * 32)
    halves = dataclasses.replace(work, text_batch=4)
    limit, need = (
        loose.planning.planner(each, 0).again(placement).peak_bytes for each in (halves, work)
    )
    assert limit < need
    pipeline = planned(golden_checkpoint)
    assert pipeline.planning is not None
    terms = Terms(limits=Budget(memory=limit))
    pipeline.moving.adopt(pipeline.planning.follow(placement, terms))
    seen: list[int] = []
    forward = GptOssEncoder.forward

    def note(self: GptOssEncoder, ids: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(ids.shape[0])
        return forward(self, ids, *rest, **more)

    monkeypatch.setattr(GptOssEncoder, "forward", note)
    next(iter(pipeline.steps(words, **options)))
    assert seen == [4, 4]  # all texts at the first picture
    assert pipeline.placement is placement


def test_features_are_kept_in_what_a_plan_leaves(golden_checkpoint: Path) -> None:
    """Those of the pictures themselves are in the plan; older ones give way."""
    pipeline = planned(golden_checkpoint)
    planning, placement = pipeline.planning, pipeline.placement
    assert planning is not None and placement is not None
    roomy = pipeline.text.cache.max_bytes
    words = ["a red fox", "two red foxes under a tree", "a hat"]
    [work] = {planning.work(pipeline.plan(each, **SMALL)).rounded for each in words}
    needs = planning.planner(work, 0).again(placement)
    own = needs.of(ENCODER).kept_bytes
    for left, expected in ((0, 1), (own, 2), (10 * own, 3), (None, 3)):
        limit = None if left is None else needs.peak_bytes + left
        terms = Terms.of(Budget(memory=limit), needs, work)
        pipeline.moving.residency.terms = terms
        for each in words:
            pipeline.generate(each, **SMALL)
        assert pipeline.placement is placement
        assert len(pipeline.text.cache) == expected
        if limit is not None:
            assert terms.feature_bytes == pipeline.text.cache.max_bytes
            assert needs.peak_bytes - own + pipeline.text.cache.max_bytes <= limit
        pipeline.text.cache.clear()
    assert pipeline.text.cache.max_bytes == roomy
    assert Terms(limits=Budget(memory=1)).feature_bytes is None


def _alike(pipeline: Pipeline, words: list[str]) -> list[str]:
    """Those of the length that most of them have, in tokens."""
    assert pipeline.planning is not None
    encode = pipeline.planning.tokenizer.encode
    lengths = {each: len(encode(each).text_ids) for each in words}
    common = Counter(lengths.values()).most_common(1)[0][0]
    return [each for each in words if lengths[each] == common]


def _staged(pipeline: Pipeline, prompt: Any, options: dict[str, Any]) -> Placement:
    for each in planner_of(pipeline, prompt, **options).placements:
        if [one.strategy.residence for one in each.networks] == ["staged", "staged", "staged"]:
            return each
    raise AssertionError("no staged placement")


# ── loaded with a limit, as a person does ─────────────────────────────────────────────────────────


def test_a_loaded_limit_holds_for_every_request(
    golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is set but the limit and what the machine and the process are."""
    monkeypatch.setattr(planning, "measured_speeds", lambda *machine: QUICK_TO_READ)
    monkeypatch.setattr(backends, "resident_bytes", lambda: 400_000_000)
    request = GenerationRequest(prompt=FOX, **SMALL)
    roomy = Pipeline.load(golden_checkpoint, device="cpu", memory="8GB", request=request)
    assert roomy.placement is not None
    limit = roomy.placement.peak_bytes + 100_000_000
    first = Pipeline.load(golden_checkpoint, device="cpu", memory=limit, request=request)
    assert first.terms is not None
    assert first.terms.limits == Budget(memory=limit)
    assert len(first.terms.works) == 1
    with pytest.raises(PlacementError, match="no plan for 4096x4096 fits in "):
        first.generate(FOX, height=4096, width=4096, allow_any_size=True)
    moved = first.moving.residency
    assert isinstance(moved, Residency)
    assert first.generate(FOX, **SMALL)[0].recipe.weights == "exact"
    assert first.moving.residency is moved
