"""Scenes: the same arguments the same scene, and a ground truth that is true."""

from __future__ import annotations

import numpy as np
import pytest

from petzval.data.ground_truth import Scene
from petzval.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS, clash, contrasting
from petzval.data.render import render_scene
from petzval.data.scene import SKILL_WEIGHTS, possible_skills, sample_scene
from petzval.data.sprites import SPLITS, SpriteLibrary
from petzval.errors import DataError
from petzval.resolution import Resolution

SIZES = (Resolution(128, 128), Resolution(176, 96), Resolution(96, 192), Resolution(256, 128))
SQUARE = SIZES[0]


def sample(library: SpriteLibrary, index: int, **arguments: object) -> Scene:
    """A scene of series 0, 128 x 128 unless said otherwise."""
    settings: dict[str, object] = {"seed": 0, "resolution": SQUARE} | arguments
    return sample_scene(library, index=index, **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("skill", SKILL_WEIGHTS)
def test_a_scene_is_a_pure_function_of_its_arguments(library: SpriteLibrary, skill: str) -> None:
    first = sample(library, 5, skill=skill)
    sample(library, 6, skill=skill)
    again = sample(library, 5, skill=skill)
    assert first == again
    assert np.array_equal(render_scene(library, first), render_scene(library, again))
    others = [sample(library, index, skill=skill) for index in range(6, 12)]
    assert any(scene != first for scene in others)
    assert sample(library, 5, skill=skill, seed=1) != first


@pytest.mark.parametrize("skill", SKILL_WEIGHTS)
def test_what_is_drawn_does_not_depend_on_the_size(library: SpriteLibrary, skill: str) -> None:
    for index in range(10):
        square, tall, wide, _ = (
            sample(library, index, skill=skill, resolution=size) for size in SIZES
        )
        for scene in (tall, wide):
            assert scene.background == square.background
            assert [o.sprite for o in scene.objects] == [o.sprite for o in square.objects]
            assert scene.relation == square.relation


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_lie_inside_and_pictures_have_the_size(
    library: SpriteLibrary, size: Resolution
) -> None:
    for index in range(120):
        scene = sample(library, index, resolution=size)
        picture = render_scene(library, scene)
        assert picture.shape == (size.height, size.width, 3) and picture.dtype == np.uint8
        boxes = [thing.box for thing in scene.objects]
        boxes += [scene.word.box] if scene.word is not None else []
        assert boxes
        for box in boxes:
            assert box.height > 4 and box.width > 4
            assert box.top >= 0 and box.top + box.height <= size.height
            assert box.left >= 0 and box.left + box.width <= size.width


@pytest.mark.parametrize("split", ["held_out_concepts", "held_out_styles", "held_out_both"])
def test_splits_keep_apart(library: SpriteLibrary, split: str) -> None:
    trained = {
        thing.sprite
        for index in range(150)
        for thing in sample(library, index, split="train").objects
    }
    held_out = {
        thing.sprite for index in range(50) for thing in sample(library, index, split=split).objects
    }
    assert trained and held_out and trained.isdisjoint(held_out)
    assert all(library.sprites[index].in_split("train") for index in trained)
    assert all(library.sprites[index].in_split(split) for index in held_out)


def test_every_split_shows_what_it_can(library: SpriteLibrary) -> None:
    assert set(possible_skills(library, "train")) == set(SKILL_WEIGHTS)
    for split in set(SPLITS) - {"train", "trained_styles"}:
        skills = possible_skills(library, split)
        assert "single" in skills and "word" not in skills and "portrait" not in skills
    with pytest.raises(DataError, match="'portrait'") as caught:
        sample(library, 0, split="held_out_styles", skill="portrait")
    assert "single" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "negative"),
        ({"index": 0, "seed": -1}, "negative"),
        ({"index": 0, "split": "everything"}, "unknown split"),
        ({"index": 0, "skill": "juggling"}, "juggling"),
    ],
)
def test_wrong_arguments_are_refused(
    library: SpriteLibrary, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        sample(library, **arguments)  # pyright: ignore[reportArgumentType]


def test_things_are_where_the_scene_says(library: SpriteLibrary) -> None:
    """What differs from the background lies in the boxes, and something lies in each box."""
    for index in range(80):
        scene = sample(library, index)
        if scene.background.kind == "gradient":
            continue
        picture = render_scene(library, scene).astype(int)
        changed = np.abs(picture - scene.background.rgb[0]).max(axis=-1) > 0
        outside = changed.copy()
        boxes = [thing.box for thing in scene.objects]
        boxes += [scene.word.box] if scene.word is not None else []
        for top, left, height, width in boxes:
            assert changed[top : top + height, left : left + width].mean() > 0.1
            outside[top : top + height, left : left + width] = False
        assert not outside.any()


def test_relations_are_true(library: SpriteLibrary) -> None:
    seen: set[str] = set()
    for index in range(60):
        scene = sample(library, index, skill="two", resolution=SIZES[index % 4])
        first, second = (thing.box for thing in scene.objects)
        seen.add(scene.relation)
        assert scene.objects[0].concept != scene.objects[1].concept
        right = first.left >= second.left + second.width
        left = first.left + first.width <= second.left
        above = first.top + first.height <= second.top
        below = first.top >= second.top + second.height
        truth = {"left of": left, "right of": right, "above": above, "below": below}
        assert truth[scene.relation]
    assert seen == {"left of", "right of", "above", "below"}


def test_counted_things_are_equal_and_apart(library: SpriteLibrary) -> None:
    counts: set[int] = set()
    for index in range(80):
        scene = sample(library, index, skill="count", resolution=SIZES[index % 4])
        counts.add(scene.count)
        assert len({(o.sprite, o.box.height, o.box.width) for o in scene.objects}) == 1
        covered = np.zeros((scene.resolution.height, scene.resolution.width), int)
        for top, left, height, width in (thing.box for thing in scene.objects):
            covered[top : top + height, left : left + width] += 1
        assert covered.max() == 1
    assert counts == {1, 2, 3, 4, 5}


def test_cells_and_sizes_are_true(library: SpriteLibrary) -> None:
    cells: set[tuple[int, int]] = set()
    for index in range(120):
        scene = sample(library, index, skill="position")
        thing = scene.objects[0]
        cells.add(thing.cell)
        box, size = thing.box, scene.resolution
        centre = ((box.top + box.height / 2) * 3 / size.height, (box.left + box.width / 2) * 3)
        assert thing.cell == (int(centre[0]), int(centre[1] / size.width))
        assert thing.size == "small"
    assert len(cells) == 9


def test_paint_is_the_named_colour_and_can_be_seen(library: SpriteLibrary) -> None:
    colours: set[str] = set()
    for index in range(150):
        scene = sample(library, index, skill="colour")
        thing = scene.objects[0]
        assert thing.painted and thing.colour is not None
        colours.add(thing.colour)
        assert not any(clash(thing.colour, name) for name in scene.background.colours)
        picture = render_scene(library, scene)
        top, left, height, width = thing.box
        middle = picture[top + height // 2, left + width // 2]
        assert np.abs(middle.astype(int) - OBJECT_COLOURS[thing.colour]).max() <= 1
    assert colours == set(OBJECT_COLOURS)


def test_backgrounds_are_balanced(library: SpriteLibrary) -> None:
    names = [sample(library, i, skill="portrait").background.colours for i in range(1000)]
    plain = [colours[0] for colours in names if len(colours) == 1]
    shares = {name: plain.count(name) / len(plain) for name in BACKGROUND_COLOURS}
    assert 0.88 < len(plain) / len(names) < 0.96
    assert min(shares.values()) > 0.4 / len(shares)
    assert max(shares.values()) < 1.8 / len(shares)


def test_every_colour_has_backgrounds_that_show_it() -> None:
    for colour in OBJECT_COLOURS:
        assert len(contrasting(colour)) >= 6
        assert colour not in contrasting(colour)


def test_the_mixture_follows_its_weights(library: SpriteLibrary) -> None:
    skills = [sample(library, index).skill for index in range(900)]
    for skill, weight in SKILL_WEIGHTS.items():
        assert abs(skills.count(skill) / len(skills) - weight) < 0.05
    assert sum(SKILL_WEIGHTS.values()) == pytest.approx(1)


def test_gradients_go_from_the_first_colour_to_the_second(library: SpriteLibrary) -> None:
    directions: set[str] = set()
    for index in range(150):
        scene = sample(library, index, skill="position")
        background = scene.background
        if background.kind == "plain":
            continue
        directions.add(background.direction)
        picture = render_scene(library, scene)
        free = picture[2, :] if background.direction == "horizontal" else picture[:, 2]
        far = picture[-3, :] if background.direction == "horizontal" else picture[:, -3]
        ends = [(tuple(line[0]), tuple(line[-1])) for line in (free, far)]
        assert (background.rgb[0], background.rgb[1]) in [
            (tuple(map(int, a)), tuple(map(int, b))) for a, b in ends
        ]
    assert directions == {"vertical", "horizontal"}
