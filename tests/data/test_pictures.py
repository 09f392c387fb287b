"""Joining pictures with concepts: by code points, by name, and never across the split."""

from __future__ import annotations

from pathlib import Path

import pytest

from petzval.data.concepts import Concept, is_held_out
from petzval.data.pictures import (
    HELD_OUT_STYLES,
    Picture,
    emoji_pictures,
    flag_pictures,
    icon_pictures,
    shape_pictures,
)
from tests.data.archives import icon_set, write_archive
from tests.data.small_library import png

SEQUENCES = {"🐱": "cat-face", "🐈": "cat", "❤": "red-heart", "🇯🇵": "flag-japan"}
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Archives of all picture sets, with a few pictures each."""
    write_archive(
        tmp_path,
        "@lobehub/fluent-emoji-3d",
        {
            "assets/1f431.webp": png((1, 2, 3)),
            "assets/1f44b-1f3fb.webp": png((1, 2, 3)),
            "assets/readme.webp": b"",
            "package.json": {},
        },
    )
    write_archive(
        tmp_path,
        "openmoji",
        {
            "color/svg/1F431.svg": SVG,
            "color/svg/extra.svg": SVG,
            "black/svg/1F408.svg": SVG,
        },
    )
    for prefix in ("noto", "fluent-emoji-flat", "twemoji"):
        write_archive(
            tmp_path,
            f"@iconify-json/{prefix}",
            {
                "icons.json": icon_set("kitty", "unknown"),
                "chars.json": {"1f431": "kitty", "1f408": "gone", "1f9ff": "unknown"},
            },
        )
    for prefix in ("noto-v1", "fluent-emoji", "emojione"):
        write_archive(
            tmp_path, f"@iconify-json/{prefix}", {"icons.json": icon_set("cat-face", "kitty")}
        )
    write_archive(
        tmp_path,
        "@iconify-json/fxemoji",
        {"icons.json": icon_set("catface", "catside", "heart", "odd")},
    )
    write_archive(
        tmp_path, "@iconify-json/circle-flags", {"icons.json": icon_set("jp", "xx", "eu-flag")}
    )
    write_archive(
        tmp_path,
        "@iconify-json/fluent-color",
        {"icons.json": icon_set("heart-16", "heart-48", "approve-20")},
    )
    write_archive(tmp_path, "@iconify-json/flat-color-icons", {"icons.json": icon_set("template")})
    write_archive(
        tmp_path, "@iconify-json/meteocons", {"icons.json": icon_set("clear-day-fill", "dust-day")}
    )
    write_archive(
        tmp_path,
        "@iconify-json/game-icons",
        {"icons.json": icon_set("cat", "lion", "periscope", "two-part-name", "card-2", "big-cat")},
    )
    return tmp_path


def _concept(key: str, group: str = "animals-nature") -> Concept:
    return Concept(id=key, name=key, names={"en": key}, group=group, held_out=is_held_out(key))


def _joined(pictures: list[Picture]) -> set[tuple[str, str, str]]:
    return {(picture.style, picture.key, picture.concept) for picture in pictures}


def test_emoji_are_joined_by_code_points_or_by_name(cache: Path) -> None:
    found = _joined(list(emoji_pictures(cache, SEQUENCES)))
    assert found == {
        ("fluent-3d", "1f431", "cat-face"),
        ("noto", "kitty", "cat-face"),
        ("fluent-flat", "kitty", "cat-face"),
        ("twemoji", "kitty", "cat-face"),
        ("fluent", "kitty", "cat-face"),  # the gradient set has the names of the flat one
        ("noto-v1", "cat-face", "cat-face"),
        ("emojione", "cat-face", "cat-face"),
        ("fxemoji", "catface", "cat-face"),
        ("fxemoji", "catside", "cat"),
        ("fxemoji", "heart", "red-heart"),
        ("openmoji", "1F431", "cat-face"),
    }
    styles = {style for style, _, _ in found}
    assert styles >= HELD_OUT_STYLES


def test_round_flags_are_joined_by_country(cache: Path) -> None:
    assert _joined(list(flag_pictures(cache, SEQUENCES))) == {("round-flag", "jp", "flag-japan")}


def test_icons_keep_to_known_things_and_silhouettes_add_their_own(cache: Path) -> None:
    concepts = {key: _concept(key) for key in ("cat", "lion", "red-heart", "sun")}
    found = _joined(list(icon_pictures(cache, concepts)))
    assert found == {
        ("colour-icon", "heart-48", "red-heart"),  # the largest size of each
        ("weather-icon", "clear-day-fill", "sun"),
        ("silhouette", "cat", "cat"),
        ("silhouette", "lion", "lion"),
        ("silhouette", "periscope", "periscope"),
    }
    assert concepts["periscope"].group == "icons"
    assert concepts["lion"].held_out and not concepts["cat"].held_out
    assert all(p.kind == "mask" for p in icon_pictures(cache, concepts) if p.style == "silhouette")


def test_every_picture_carries_its_licence(cache: Path) -> None:
    pictures = [*emoji_pictures(cache, SEQUENCES), *flag_pictures(cache, SEQUENCES)]
    licences = {picture.style: picture.licence for picture in pictures}
    assert licences["openmoji"] == "CC-BY-SA-4.0" and licences["fluent-3d"] == "MIT"
    assert all(picture.source and picture.licence for picture in pictures)


def test_shapes_are_masks_that_can_be_drawn() -> None:
    pytest.importorskip("resvg_py", reason="the extra 'data' is not installed")
    drawn = {picture.concept: picture.draw() for picture in shape_pictures()}
    assert set(drawn) == {
        "circle", "square", "triangle", "star-shape", "heart-shape", "diamond-shape",
    }  # fmt: skip
    for pixels in drawn.values():
        assert pixels is not None and (pixels[80, 80] == 255).all()
