from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from petzval.scoring.detector import Detector, network_size, targets_of
from petzval.scoring.dual_encoder import DualEncoder, PictureHead
from petzval.scoring.examples import LabelledScene
from petzval.scoring.judge import Judge, JudgeRules
from petzval.scoring.scorer import Expectation, ExpectedObject, Scorer
from tests.scoring.shapes import SHAPES, PixelBackbone, scene_of

COLOUR_OF = {"disc": 0, "square": 1, "triangle": 2}
RULES = JudgeRules(num_distractors=3, top=1, styles_asked=("solid", "hollow"))


class KnowingDetector(Detector):
    """Finds exactly the things of one scene."""

    def __init__(self, scene: LabelledScene) -> None:
        super().__init__(8)
        self.scene = scene

    def forward(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[2:]
        targets = targets_of([one.box for one in self.scene.objects], height, width)
        logits = torch.where(targets.here > 0, 10.0, -10.0)
        return torch.cat([logits[None], targets.sizes])[None]


class KnowingEncoder(DualEncoder):
    """Embeds the n-th cut-out of a scene as its n-th thing (in the order of columns)."""

    def __init__(self, shapes: Sequence[str]) -> None:
        head = PictureHead(144, 2, hidden=8, embedding=4)
        names = {shape: shape for shape in SHAPES}
        super().__init__(PixelBackbone(), head, names, torch.eye(4), ("solid", "hollow"))
        self.shapes = shapes

    def embed(self, cutouts: Tensor) -> tuple[Tensor, Tensor]:
        rows = [SHAPES.index(shape) for shape in self.shapes]
        return torch.eye(4)[rows], torch.tensor([[1.0, 0.0]]).repeat(len(rows), 1)


def judge(scene: LabelledScene, seen_as: Sequence[str]) -> Judge:
    return Judge(KnowingDetector(scene), KnowingEncoder(seen_as), identity="test", rules=RULES)


@pytest.fixture
def pair() -> LabelledScene:
    """Things are found in the order of their boxes: the disc first."""
    assert network_size(128, 128) == (128, 128)
    return scene_of(("disc", "red", (8, 8)), ("square", "blue", (80, 84)), background="teal")


def expect(*objects: ExpectedObject, **rest: str) -> Expectation:
    return Expectation(objects=objects, **rest)


def test_a_judge_is_a_scorer(pair: LabelledScene) -> None:
    scorer: Scorer = judge(pair, ["disc", "square"])
    assert scorer.identity.startswith("test/")
    assert "top=1" in scorer.identity


def test_a_picture_that_has_everything_passes(pair: LabelledScene) -> None:
    expectation = expect(
        ExpectedObject(concept="square", colour="blue", position="bottom right", count=1),
        ExpectedObject(concept="disc", colour="red", position="top left", count=1),
        background="teal",
        style="solid",
    )
    verdict = judge(pair, ["disc", "square"]).score(pair.picture, expectation)
    assert dict(verdict.checks) == dict.fromkeys(expectation.asked(), True)
    assert verdict.passed
    assert verdict.reasons["count"] == "2 objects"


@pytest.mark.parametrize(
    ("objects", "rest", "failing"),
    [
        ([ExpectedObject(concept="triangle")], {}, "concept"),
        ([ExpectedObject(concept="disc"), ExpectedObject(concept="disc")], {}, "concept"),
        ([ExpectedObject(concept="disc", count=3)], {}, "count"),
        ([ExpectedObject(concept="disc", colour="blue")], {}, "colour"),
        ([ExpectedObject(concept="disc", position="center")], {}, "position"),
        ([ExpectedObject(concept="disc")], {"background": "green"}, "background"),
        ([ExpectedObject(concept="disc")], {"style": "hollow"}, "style"),
    ],
)
def test_each_mistake_fails_its_own_check_only(
    pair: LabelledScene, objects: list[ExpectedObject], rest: dict[str, str], failing: str
) -> None:
    verdict = judge(pair, ["disc", "square"]).score(pair.picture, expect(*objects, **rest))
    assert not verdict.checks[failing]
    assert all(right for name, right in verdict.checks.items() if name != failing)
    assert not verdict.passed
    assert verdict.reasons[failing]


@pytest.mark.parametrize(
    ("at", "relation"),
    [((44, 84), "left of"), ((44, 4), "right of"), ((88, 44), "above"), ((4, 44), "below")],
)
def test_relations_read_as_the_first_to_the_second(at: tuple[int, int], relation: str) -> None:
    scene = scene_of(("disc", "red", (44, 44)), ("square", "blue", at))
    order = ["disc", "square"] if at > (44, 44) else ["square", "disc"]
    expectation = expect(
        ExpectedObject(concept="disc"), ExpectedObject(concept="square"), relation=relation
    )
    assert judge(scene, order).score(scene.picture, expectation).passed
    other = "above" if relation in {"left of", "right of"} else "left of"
    swapped = expect(*expectation.objects, relation=other)
    assert not judge(scene, order).score(scene.picture, swapped).checks["relation"]


def test_an_empty_picture_fails_everything_about_things_but_not_the_background() -> None:
    empty = scene_of(background="pink")
    expectation = expect(
        ExpectedObject(concept="disc", count=1, colour="red", position="center"),
        background="pink",
        style="solid",
    )
    verdict = judge(empty, []).score(empty.picture, expectation)
    assert [name for name, right in verdict.checks.items() if right] == ["background"]


def test_a_concept_that_the_scorer_never_met_fails(pair: LabelledScene) -> None:
    verdict = judge(pair, ["disc", "square"]).score(
        pair.picture, expect(ExpectedObject(concept="zebra"))
    )
    assert not verdict.passed


def test_many_things_are_counted_even_where_not_all_are_looked_at() -> None:
    places = [(y, x) for y in (2, 42, 84) for x in (2, 34, 66, 98)]
    scene = scene_of(*(("disc", "red", at) for at in places), side=24)
    verdict = judge(scene, ["disc"] * 8).score(
        scene.picture, expect(ExpectedObject(concept="disc", count=12))
    )
    assert verdict.passed


def test_chance_multiplies_over_things(pair: LabelledScene) -> None:
    chance = judge(pair, ["disc", "square"]).chance(
        expect(
            ExpectedObject(concept="disc", colour="red", position="top"),
            ExpectedObject(concept="square", colour="blue"),
            relation="above",
            background="teal",
            style="solid",
        )
    )
    assert chance == pytest.approx(
        {
            "concept": 1 / 16,
            "colour": 1 / 121,
            "position": 1 / 9,
            "relation": 1 / 4,
            "background": 1 / 14,
            "style": 1 / 2,
        }
    )


def test_the_same_picture_gets_the_same_verdict(pair: LabelledScene) -> None:
    expectation = expect(ExpectedObject(concept="disc", colour="red"), background="teal")
    verdicts = [
        judge(pair, ["disc", "square"]).score(np.array(pair.picture), expectation) for _ in range(2)
    ]
    assert verdicts[0] == verdicts[1]
