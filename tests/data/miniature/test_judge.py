"""What the judge reads, and what it thinks of right, wrong and spoilt pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petzval.data.miniature.captions import Asked, Caption, brief, brief_forms, caption, dense
from petzval.data.miniature.freedom import variety
from petzval.data.miniature.judge import CRITERIA, Verdict, judge, read, score
from petzval.data.miniature.world import (
    LARGE,
    SMALL,
    TALL,
    WIDE,
    Canvas,
    Freedom,
    Scene,
    Thing,
    all_scenes,
    draw,
    draw_all,
)

CANVASES = (SMALL, LARGE, WIDE, TALL)


def _scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [
        scenes[int(number)]
        for scenes in (all_scenes(1), all_scenes(2), all_scenes(3))
        for number in rng.integers(len(scenes), size=60)
    ]


SCENES = _scenes()


def _mean(verdicts: list[Verdict]) -> float:
    return float(np.mean([verdict.rubric for verdict in verdicts]))


@pytest.mark.parametrize("canvas", CANVASES, ids=str)
def test_true_pictures_are_read_exactly_and_score_one(canvas: Canvas) -> None:
    rng = np.random.default_rng(1)
    pictures, freedoms = draw_all(SCENES, canvas, rng)
    for reading, scene, freedom in zip(read(pictures), SCENES, freedoms, strict=True):
        assert reading.things == scene.things
        assert reading.offsets == freedom.offsets
        assert reading.grey == pytest.approx(freedom.grey, abs=1e-5)
    for captions in ([dense(s) for s in SCENES], [brief(s, rng) for s in SCENES]):
        assert all(verdict.is_right for verdict in score(pictures, captions))


def test_under_the_captions_of_others_only_chance_is_left() -> None:
    """Two of five criteria at least are met by luck or by being a picture of this world."""
    pictures, _ = draw_all(SCENES, SMALL, np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(len(SCENES))
    verdicts = score(pictures, [dense(SCENES[int(number)]) for number in order])
    assert 0.3 < _mean(verdicts) < 0.55
    assert sum(verdict.is_right for verdict in verdicts) <= 0.03 * len(verdicts)


@pytest.mark.parametrize("canvas", CANVASES, ids=str)
def test_growing_noise_never_helps(canvas: Canvas) -> None:
    pictures, _ = draw_all(SCENES, canvas, np.random.default_rng(1))
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    captions = [dense(scene) for scene in SCENES]
    levels = (0.0, 0.15, 0.2, 0.3, 1.0, 2.0, 10.0)
    means = [_mean(score(pictures + level * noise, captions)) for level in levels]
    assert means == sorted(means, reverse=True)
    assert means[0] == means[1] == 1 and means[-1] < 0.4


def test_an_empty_picture_meets_nothing_but_structure() -> None:
    (verdict,) = score(torch.zeros(1, 3, 12, 12), [dense(SCENES[0])])
    assert verdict.criteria == dict.fromkeys(CRITERIA, 0.0) | {"structure": 1.0}


RED = Thing(colour="red", shape="square", place="top left")
BLUE = Thing(colour="blue", shape="ring", place="bottom right")


def _criteria(shown: Scene, asked: Caption) -> dict[str, float]:
    picture = draw(shown, LARGE, Freedom(0.1, ((1, 1),) * len(shown.things)))
    (reading,) = read(picture[None])
    return {str(name): value for name, value in judge(reading, asked).criteria.items()}


def test_each_mistake_costs_its_own_criterion() -> None:
    asked = dense(Scene((RED, BLUE)))
    right = {"count": 1.0, "place": 1.0, "colour": 1.0, "shape": 1.0, "structure": 1.0}
    assert _criteria(Scene((RED, BLUE)), asked) == right
    green = Thing(colour="green", shape="ring", place="bottom right")
    assert _criteria(Scene((RED, green)), asked) == right | {"colour": 0.5}
    cross = Thing(colour="blue", shape="cross", place="bottom right")
    assert _criteria(Scene((RED, cross)), asked) == right | {"shape": 0.5}
    missing = {"count": 0.0, "place": 0.5, "colour": 0.5, "shape": 0.5}
    assert _criteria(Scene((RED,)), asked) == right | missing
    more = Thing(colour="red", shape="ring", place="top right")
    assert _criteria(Scene((RED, more, BLUE)), asked) == right | {"count": 0.0}


def test_a_brief_caption_asks_only_for_what_it_says() -> None:
    scene = Scene((RED, BLUE))
    anywhere = Caption("blue ring", (Asked(colour="blue", shape="ring"),))
    assert _criteria(scene, anywhere) == {"colour": 1.0, "shape": 1.0, "structure": 1.0}
    half = Caption("red ring", (Asked(colour="red", shape="ring"),))
    assert sum(_criteria(scene, half).values()) == 2
    placed = Caption("red shape bottom right", (Asked(colour="red", place="bottom right"),))
    assert _criteria(scene, placed) == {"place": 1.0, "colour": 0.0, "structure": 1.0}


def test_two_greys_in_one_picture_are_no_good_structure() -> None:
    picture = draw(Scene((RED,)), SMALL, Freedom(-0.4, ((0, 0),)))
    picture[:, 6:, 6:] = 0.4
    (reading,) = read(picture[None])
    assert reading.things == (RED,) and reading.error < 1e-5 and not reading.is_well_drawn


def test_words_say_what_is_asked() -> None:
    scene = Scene((RED, BLUE))
    assert dense(scene).text == "two shapes: red square top left, blue ring bottom right"
    assert [form.text for form in brief_forms(scene)] == [
        "red square",
        "square top left",
        "red shape top left",
        "blue ring",
        "ring bottom right",
        "blue shape bottom right",
    ]


def test_mixed_captions_are_half_and_half() -> None:
    rng = np.random.default_rng(0)
    drawn = [caption(Scene((RED, BLUE)), "mixed", rng) for _ in range(400)]
    assert 160 < sum(each.count is not None for each in drawn) < 240
    assert {each.text for each in drawn} >= {form.text for form in brief_forms(Scene((RED, BLUE)))}


def test_variety_is_one_for_the_truth_and_little_for_a_narrow_model() -> None:
    pictures, _ = draw_all(SCENES * 3, SMALL, np.random.default_rng(1))
    truth = variety(read(pictures), SMALL)
    assert truth.offsets == pytest.approx(1, abs=0.03)
    assert truth.grey == pytest.approx(1, abs=0.1)
    narrow = [draw(s, SMALL, Freedom(0.1, ((0, 0),) * len(s.things))) for s in SCENES]
    found = variety(read(torch.stack(narrow)), SMALL)
    assert found.offsets < 0.01 and found.grey < 0.01


def test_variety_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no variety"):
        variety(read(torch.zeros(3, 3, 12, 12)), SMALL)
