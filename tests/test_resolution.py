from __future__ import annotations

import json
from pathlib import Path

import pytest

from petzval.errors import ResolutionError
from petzval.resolution import (
    MAX_TOKENS,
    PRESETS,
    Resolution,
    checked,
    nearest_sizes,
    resolve,
)

GOLDEN = Path(__file__).parent / "goldens" / "public" / "resolution_buckets.json"


def test_presets_are_the_published_ones() -> None:
    published = json.loads(GOLDEN.read_text())
    for base, family in published.items():
        ours = {name: [size.height, size.width] for name, size in PRESETS[int(base)].items()}
        assert ours == family


@pytest.mark.parametrize("base", sorted(PRESETS))
def test_a_family_has_nine_different_ratios_near_its_area(base: int) -> None:
    family = PRESETS[base]
    assert len(set(family.values())) == 9
    for name, size in family.items():
        width, height = (int(part) for part in name.split(":"))
        tolerance = 0.05 if base == 128 else 0.03
        assert size.aspect == pytest.approx(width / height, rel=tolerance)
        assert size.height * size.width == pytest.approx(base**2, rel=0.13 if base == 128 else 0.06)
        mirrored = family[f"{height}:{width}"]
        assert (mirrored.height, mirrored.width) == (size.width, size.height)


def test_grid_and_tokens_count_cells_of_sixteen_pixels() -> None:
    size = Resolution(768, 1376)
    assert size.grid == (48, 86)
    assert size.num_tokens == 48 * 86
    assert size.aspect > 1
    assert str(size) == "1376x768"


def test_three_ways_to_ask_for_one_size() -> None:
    wanted = Resolution(768, 1376)
    assert resolve(aspect="16:9") == wanted
    assert resolve(size="1376x768") == wanted
    assert resolve(height=768, width=1376) == wanted
    assert resolve(base=256) == Resolution(256, 256)


def test_every_preset_is_legal_although_some_exceed_the_free_area() -> None:
    for family in PRESETS.values():
        for size in family.values():
            assert checked(size.height, size.width) == size
    assert PRESETS[1440]["2:1"].num_tokens > MAX_TOKENS


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (1000, 1000, "1000x1000 is not on the 16-pixel grid"),
        (1024, 1030, "16-pixel grid"),
        (0, 1024, "not positive"),
        (-16, 1024, "not positive"),
        (1024, 480, "more than twice"),
        (480, 1024, "more than twice"),
        (1456, 1440, "tokens"),
        (160_000, 160_000, "tokens"),
        (10**9, 16, "more than twice"),
    ],
)
def test_an_illegal_size_is_refused(height: int, width: int, message: str) -> None:
    with pytest.raises(ResolutionError, match=message) as caught:
        resolve(height=height, width=width)
    assert caught.value.hint


@pytest.mark.parametrize("height", [1024.0, "1024", True, float("nan")])
def test_sides_are_whole_numbers(height: object) -> None:
    with pytest.raises(ResolutionError, match="whole numbers"):
        resolve(height=height, width=1024)  # type: ignore[arg-type]  # what a user may pass


def test_the_offer_is_legal_and_near() -> None:
    assert {str(size) for size in nearest_sizes(1000, 1000)} == {"1008x1008", "992x992"}
    assert nearest_sizes(10**6, 10**6, count=1) == [Resolution(1440, 1440)]
    for height, width in [(1, 1), (17, 900), (5000, 40), (2080, 1056)]:
        for size in nearest_sizes(height, width):
            assert checked(size.height, size.width) == size
    with pytest.raises(ResolutionError) as caught:
        resolve(size="1000x1000")
    assert "1008x1008" in caught.value.hint


@pytest.mark.parametrize(
    "size", ["", "1024", "1024x", "axb", "1024x1024x1024", "1e3x1e3", "9" * 5000 + "x16"]
)
def test_an_unreadable_size_is_refused(size: str) -> None:
    with pytest.raises(ResolutionError, match="cannot read the size") as caught:
        resolve(size=size)
    assert len(caught.value.message) < 100


@pytest.mark.parametrize(
    "given",
    [
        {"aspect": "5:4"},
        {"aspect": ""},
        {"base": 1000},
        {"aspect": "1:1", "size": "64x64"},
        {"height": 1024},
        {"width": 1024},
    ],
)
def test_a_wrong_way_to_ask_is_refused(given: dict[str, str | int]) -> None:
    with pytest.raises(ResolutionError) as caught:
        resolve(**given)  # type: ignore[arg-type]
    assert caught.value.hint


def test_the_daring_may_leave_the_trained_range_but_not_the_grid() -> None:
    assert checked(64, 144, allow_any_size=True) == Resolution(64, 144)
    assert checked(2048, 2048, allow_any_size=True).num_tokens == 16_384
    for height, width in [(100, 100), (16, 131_072), (8192, 8192)]:
        with pytest.raises(ResolutionError):
            checked(height, width, allow_any_size=True)


def test_the_hint_tells_of_the_option_where_it_helps() -> None:
    for size in ("2048x2048", "512x128"):
        with pytest.raises(ResolutionError) as caught:
            resolve(size=size)
        assert "--allow-any-size" in caught.value.hint and "nearest" in caught.value.hint
        resolve(size=size, allow_any_size=True)
    with pytest.raises(ResolutionError) as caught:
        resolve(size="1000x1000")
    assert "--allow-any-size" not in caught.value.hint
