from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from petzval.data.sprites import SpriteLibrary, write_library
from petzval.errors import DataError
from petzval.evals.questions import Question
from petzval.evals.real_scenes import real_picture, shuffled
from petzval.evals.scorer_data import LibraryScorerData
from petzval.resolution import Resolution
from petzval.scoring.colours import background_shares
from petzval.scoring.examples import BLOCK, ScorerData
from petzval.scoring.scorer import Expectation, ExpectedObject
from tests.data.small_library import small_concepts, small_pictures

SIZE = Resolution(height=128, width=128)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> SpriteLibrary:
    folder = tmp_path_factory.mktemp("library")
    write_library(folder, small_pictures(), small_concepts(), num_processes=1)
    return SpriteLibrary.open(folder)


def ask(number: int, *objects: ExpectedObject, skill: str = "single", **rest: str) -> Question:
    return Question(
        prompt_id=f"en-{skill}-{number}", number=f"{skill}-{number}", skill=skill, language="en",
        prompt=f"prompt {number}", trained=True, expectation=Expectation(objects=objects, **rest),
    )  # fmt: skip


def known(library: SpriteLibrary, style: str) -> str:
    return next(one.concept for one in library.sprites if one.style == style)


def test_a_real_picture_has_the_asked_background(library: SpriteLibrary) -> None:
    concept = known(library, "openmoji")
    for index, name in enumerate(("teal", "pink", "light blue")):
        picture = real_picture(
            library, ask(index, ExpectedObject(concept=concept), background=name), index, SIZE
        )
        assert next(iter(background_shares(picture))) == name


def test_it_is_drawn_the_same_way_again_and_differs_by_index(library: SpriteLibrary) -> None:
    question = ask(0, ExpectedObject(concept=known(library, "openmoji")))
    first = real_picture(library, question, 0, SIZE)
    np.testing.assert_array_equal(first, real_picture(library, question, 0, SIZE))
    assert (first != real_picture(library, question, 1, SIZE)).any()


def test_things_lie_where_they_should(library: SpriteLibrary) -> None:
    concept = known(library, "openmoji")
    question = ask(0, ExpectedObject(concept=concept, position="bottom right"), background="white")
    picture = real_picture(library, question, 0, SIZE).astype(int)
    ys, xs = np.nonzero((np.abs(picture - picture[0, 0]) > 20).any(axis=-1))
    assert ys.mean() > 2 * 128 / 3 and xs.mean() > 2 * 128 / 3


def test_a_known_style_is_drawn_with_trained_pictures(library: SpriteLibrary) -> None:
    question = ask(0, ExpectedObject(concept=known(library, "openmoji")), background="white")
    new = real_picture(library, question, 0, SIZE)
    old = real_picture(library, question, 0, SIZE, known_style=True)
    green, others = new[..., 1].astype(int), new[..., [0, 2]].astype(int).max(axis=-1)
    assert (green - others > 60).any(), "the small library's OpenMoji is green"
    green, others = old[..., 1].astype(int), old[..., [0, 2]].astype(int).max(axis=-1)
    assert not (green - others > 60).any()


def test_a_thing_that_nobody_drew_is_named(library: SpriteLibrary) -> None:
    with pytest.raises(DataError, match="zebra"):
        real_picture(library, ask(0, ExpectedObject(concept="zebra")), 0, SIZE)


def test_shuffling_keeps_the_skill_and_changes_what_is_asked() -> None:
    asked = [
        ask(i, ExpectedObject(concept=f"c{i % 3}"), skill=skill)
        for skill in ("single", "count")
        for i in range(9)
    ]
    pairs = shuffled(asked)
    assert [one for one, _ in pairs] == asked
    for one, other in pairs:
        assert one.skill == other.skill
        assert one.expectation != other.expectation
    assert pairs == shuffled(asked)
    assert shuffled([asked[0]]) == []


def test_scorer_data_has_all_concepts_but_only_trained_styles(library: SpriteLibrary) -> None:
    data = LibraryScorerData(library)
    assert isinstance(data, ScorerData)
    styles = {one.style for one in data.sprites}
    assert styles and not styles & {"openmoji", "emojione", "personas"}
    assert {one.concept for one in data.sprites} == data.concepts.keys() == data.names.keys()
    assert any(concept.held_out for concept in small_concepts().values())
    assert data.pixels(0).shape == (160, 160, 4)


def test_scenes_of_a_block_fit_in_one_batch(library: SpriteLibrary, tmp_path: Path) -> None:
    data = LibraryScorerData(library)
    for block in range(6):
        scenes = [data.scene(BLOCK * block + i) for i in range(0, BLOCK, 5)]
        shapes = {scene.picture.shape for scene in scenes}
        assert len(shapes) == 1
        height, width, _ = shapes.pop()
        assert height % 32 == width % 32 == 0
        for scene in scenes:
            assert scene.objects
            for one in scene.objects:
                top, left, bottom, right = one.box
                assert 0 <= top < bottom <= height + 1
                assert 0 <= left < right <= width + 1
