from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petzval.errors import RequestError
from petzval.inference.image import read_recipe
from petzval.inference.mark import MAX_CHARACTERS, check_mark, check_room, marked
from petzval.inference.pipeline import Pipeline
from petzval.inference.plan import make_plan
from petzval.inference.recipe import recipe_from_json
from petzval.inference.request import GenerationRequest, request_from_recipe
from petzval.inference.variants import Defaults

_DEFAULTS = Defaults(steps=4, guidance=1.0, base=128)


def _grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (256, 512), (1440, 720)])
def test_a_mark_stands_in_its_corner_and_leaves_the_rest(height: int, width: int) -> None:
    before = _grey(height, width)
    after = marked(before, "by AI")
    assert np.array_equal(before, _grey(height, width)), "the picture that was given stays"
    rows, columns = np.nonzero((after != before).any(axis=2))
    assert rows.min() > 0.75 * height and columns.min() > 0.4 * width
    assert rows.max() < height - 1 and columns.max() < width - 1
    assert int(after.max()) - int(after.min()) > 120, "light letters on a dark ground"
    assert np.array_equal(after, marked(before, "by AI"))
    assert not np.array_equal(after, marked(before, "by me"))


@pytest.mark.parametrize("ground", [0, 255])
def test_letters_are_seen_on_black_and_on_white(ground: int) -> None:
    after = marked(np.full((512, 512, 3), ground, np.uint8), "made by AI")
    corner = after[-32:, -160:]
    assert int(corner.max()) - int(corner.min()) > 110


def test_no_words_are_no_mark() -> None:
    picture = _grey(32, 32)
    assert marked(picture, "") is picture
    assert check_mark("   ") == ""


@pytest.mark.parametrize("text", ["AI生成", "caf\xe9", "a\nb", "x\u202ey", "\x1b[31m", "🦊"])
def test_what_the_font_lacks_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="built-in font") as caught:
        check_mark(text)
    assert caught.value.message.isascii() and caught.value.message.isprintable()


def test_a_mark_that_is_too_long_or_too_wide_is_refused_before_any_work() -> None:
    with pytest.raises(RequestError, match="41 characters"):
        check_mark("x" * (MAX_CHARACTERS + 1))
    with pytest.raises(RequestError, match="does not fit into a picture of 32x32"):
        check_room("made by a machine", 32, 32)
    wide = GenerationRequest(prompt="a fox", size="32x32", mark="made by a machine")
    with pytest.raises(RequestError, match="does not fit"):
        make_plan(wide, _DEFAULTS)
    check_room("AI", 32, 32)


def test_a_recipe_remembers_its_mark_and_only_that(pipeline: Pipeline, tmp_path: Path) -> None:
    asked = GenerationRequest(prompt="a fox", size="128x64", steps=1, guidance=1.0)
    [plain] = pipeline.generate(asked)
    [image] = pipeline.generate(replace(asked, mark=" made by AI "))
    assert image.recipe == replace(plain.recipe, mark="made by AI")
    assert np.array_equal(image.pixels, marked(plain.pixels, "made by AI"))
    path = image.save(tmp_path / "fox.png")
    assert read_recipe(path) == image.recipe
    [again] = pipeline.generate(request_from_recipe(read_recipe(path)))
    assert again.encode() == path.read_bytes()
    assert "mark" not in plain.recipe.to_json().replace("markers", "")


def test_a_forged_mark_is_refused(pipeline: Pipeline) -> None:
    [image] = pipeline.generate("a fox", size="64x64", steps=1, guidance=1.0)
    forged = replace(image.recipe, mark="x" * 5000)
    read = recipe_from_json(forged.to_json(), where="fox.png")
    with pytest.raises(RequestError, match="5,000 characters"):
        request_from_recipe(read)
