from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petzval.data.corpus.buckets import (
    LENS_BUCKETS,
    MINI_BUCKETS,
    bucket_family,
    fit,
    nearest_bucket,
)
from petzval.errors import DataError
from petzval.resolution import Resolution

UPRIGHT = {
    512: "352x704 384x672 416x640 448x608 512x512",
    768: "544x1088 576x1024 640x960 672x896 768x768",
    1024: "736x1472 768x1376 832x1248 864x1152 1024x1024",
}
"""The paper's pairs, width x height; the wide ones mirror them."""

sides = st.integers(1, 5000)


def test_the_27_buckets_are_the_papers() -> None:
    expected: set[tuple[int, str]] = set()
    for base, text in UPRIGHT.items():
        for size in text.split():
            width, height = size.split("x")
            expected |= {(base, f"{width}x{height}"), (base, f"{height}x{width}")}
    assert {(each.base, str(each.resolution)) for each in LENS_BUCKETS} == expected
    assert len(LENS_BUCKETS) == 27
    assert all(each.resolution.height % 32 == 0 for each in LENS_BUCKETS)


@given(sides, sides)
def test_the_aspect_is_the_nearest_by_log_ratio(height: int, width: int) -> None:
    chosen = nearest_bucket(height, width).bucket
    same_area = [each for each in LENS_BUCKETS if each.base == chosen.base]
    errors = [abs(math.log(width / height / each.resolution.aspect)) for each in same_area]
    own = abs(math.log(width / height / chosen.resolution.aspect))
    assert own <= min(errors) + 1e-9


@given(sides, sides, st.sampled_from([1.0, 1.25, 2.0]))
def test_the_area_is_the_largest_that_needs_no_more_enlarging(
    height: int, width: int, limit: float
) -> None:
    found = nearest_bucket(height, width, max_upscale=limit)
    larger = [nearest_bucket(height, width, bucket_family(base)) for base in (512, 768, 1024)]
    allowed = [each.bucket.base for each in larger if each.scale <= limit * (1 + 1e-9)]
    assert found.bucket.base == max(allowed, default=512)


@given(sides, sides)
def test_the_crop_lies_in_the_picture_has_the_buckets_shape_and_the_loss_is_its_area(
    height: int, width: int
) -> None:
    found = nearest_bucket(height, width, MINI_BUCKETS)
    left, top, right, bottom = found.box
    assert -1e-9 <= left < right <= width + 1e-9 and -1e-9 <= top < bottom <= height + 1e-9
    size = found.bucket.resolution
    assert (right - left) * found.scale == pytest.approx(size.width)
    assert (bottom - top) * found.scale == pytest.approx(size.height)
    assert left == pytest.approx(width - right) and top == pytest.approx(height - bottom)
    lost = 1 - (right - left) * (bottom - top) / (height * width)
    assert found.crop_loss == pytest.approx(lost, abs=1e-12)
    assert 0 <= found.crop_loss < 1


@given(sides, sides)
def test_a_picture_on_its_side_takes_the_bucket_on_its_side(height: int, width: int) -> None:
    upright, turned = nearest_bucket(height, width), nearest_bucket(width, height)
    size = upright.bucket.resolution
    exact_tie = upright.bucket != turned.bucket and size.height == size.width
    assert turned.bucket.resolution == Resolution(size.width, size.height) or exact_tie


def test_known_pictures() -> None:
    assert nearest_bucket(1080, 1920).bucket.name == "1024/1376x768"
    assert nearest_bucket(768, 768).bucket.name == "768/768x768"
    assert nearest_bucket(767, 767).bucket.name == "512/512x512"
    assert nearest_bucket(767, 767, max_upscale=1.01).bucket.name == "768/768x768"
    tiny = nearest_bucket(100, 100)
    assert tiny.bucket.name == "512/512x512" and tiny.scale == 5.12
    panorama = nearest_bucket(1000, 8000)
    assert panorama.bucket.resolution.aspect == 2 and panorama.crop_loss == 0.75
    exact = fit(1024, 1024, LENS_BUCKETS[4])
    assert exact.crop_loss == 0 and exact.scale == 0.5 and exact.box == (0, 0, 1024, 1024)


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="no bucket"):
        nearest_bucket(0, 100)
    with pytest.raises(DataError, match="no buckets to choose"):
        nearest_bucket(10, 10, ())
    with pytest.raises(DataError, match="max_upscale is 0.5"):
        nearest_bucket(10, 10, max_upscale=0.5)
    with pytest.raises(DataError, match="base size 500") as caught:
        bucket_family(500)
    assert "1024" in caught.value.hint
    with pytest.raises(DataError, match="no base size"):
        bucket_family()
