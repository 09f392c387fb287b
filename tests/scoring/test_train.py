from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from petzval.errors import CheckpointError, TrainingError
from petzval.scoring.bundle import (
    SETTINGS,
    WEIGHTS,
    ScorerBundle,
    judge_of,
    load_bundle,
    load_judge,
)
from petzval.scoring.examples import SpriteLabel
from petzval.scoring.scorer import Expectation, ExpectedObject
from petzval.scoring.train import ScorerPlan, make_views, train_scorers
from tests.scoring.shapes import SHAPES, PixelBackbone, ShapeData

PLAN = ScorerPlan(
    detector_steps=40, num_views=320, head_steps=150, head_batch=64, detector_width=16,
    calibration_scenes=16,
)  # fmt: skip
NEVER_SEEN = range(100_000, 100_030)


@pytest.fixture(scope="module")
def bundle() -> ScorerBundle:
    return train_scorers(ShapeData(), PixelBackbone(), PLAN)


def test_trained_scorers_judge_scenes_they_never_saw(bundle: ScorerBundle) -> None:
    """Far above chance in seconds; what the shipped ones reach is in their card."""
    data, judge = ShapeData(), judge_of(bundle, PixelBackbone(), "x")
    counted = concept = background = 0
    for index in NEVER_SEEN:
        scene = data.scene(index)
        things = judge.look(scene.picture)
        counted += len(things) == len(scene.objects)
        expectation = Expectation(
            objects=(ExpectedObject(concept=scene.objects[0].concept),), background=scene.background
        )
        checks = judge.score(scene.picture, expectation).checks
        background += checks["background"]
        best = {index: judge._rank(things[0], shape) for index, shape in enumerate(SHAPES)}
        concept += bool(things) and SHAPES[min(best, key=lambda i: best[i])] in {
            one.concept for one in scene.objects
        }
    assert counted >= 20
    assert background == len(NEVER_SEEN)
    assert concept >= 20


def test_training_twice_gives_the_same_weights() -> None:
    short = ScorerPlan(
        detector_steps=2, num_views=64, head_steps=3, head_batch=16, detector_width=8,
        calibration_scenes=2,
    )  # fmt: skip
    one, two = (train_scorers(ShapeData(), PixelBackbone(), short) for _ in range(2))
    assert torch.equal(one.table, two.table)
    for a, b in ((one.detector, two.detector), (one.head, two.head)):
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]), key
    assert one.rules == two.rules


def test_a_saved_bundle_judges_as_before(bundle: ScorerBundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    again = load_judge(tmp_path, backbone=lambda side: PixelBackbone())
    before = judge_of(bundle, PixelBackbone(), "x")
    data = ShapeData()
    same = 0
    for index in NEVER_SEEN:
        scene = data.scene(index)
        expectation = Expectation(objects=(ExpectedObject(concept="disc"),))
        same += before.score(scene.picture, expectation) == again.score(scene.picture, expectation)
    # Half precision may turn a near tie.
    assert same >= len(NEVER_SEEN) - 1


def test_damaged_files_are_refused(bundle: ScorerBundle, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_bundle(tmp_path / "nowhere")
    bundle.save(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    for change in ({"format": 9}, {"concepts": {"disc": "disc"}}, {"head": {"num_features": 3}}):
        (tmp_path / SETTINGS).write_text(json.dumps(settings | change))
        with pytest.raises(CheckpointError):
            load_bundle(tmp_path)
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    weights = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(weights[:-100])
    with pytest.raises(CheckpointError):
        load_bundle(tmp_path)


def test_identity_follows_the_weights(bundle: ScorerBundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    first = load_judge(tmp_path, backbone=lambda side: PixelBackbone()).identity
    settings = json.loads((tmp_path / SETTINGS).read_text())
    settings["rules"]["top"] = 1
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    assert load_judge(tmp_path, backbone=lambda side: PixelBackbone()).identity != first


def test_views_are_spread_evenly_and_hide_what_is_only_measured() -> None:
    class Guarded(ShapeData):
        @property
        def sprites(self) -> list[SpriteLabel]:
            return [
                SpriteLabel(
                    concept=one.concept, style=one.style, paintable=True, measured_only=number == 0
                )
                for number, one in enumerate(super().sprites)
            ]

    views = make_views(Guarded(), PixelBackbone(), PLAN)
    assert np.bincount(views.concepts.numpy()).tolist() == [80] * 4
    assert int((views.styles == -1).sum()) == 40


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_must_be_positive(minutes: float) -> None:
    with pytest.raises(TrainingError):
        ScorerPlan.of_minutes(minutes)


def test_nothing_to_learn_from_is_an_error() -> None:
    class Empty(ShapeData):
        @property
        def sprites(self) -> list[SpriteLabel]:
            return []

    class Stray(ShapeData):
        @property
        def sprites(self) -> list[SpriteLabel]:
            return [SpriteLabel(concept="zebra", style="solid")]

    for data in (Empty(), Stray()):
        with pytest.raises(TrainingError):
            train_scorers(data, PixelBackbone(), PLAN)
