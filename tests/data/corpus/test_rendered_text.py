from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petzval.data.corpus.fonts import covering, find_fonts
from petzval.data.corpus.rendered_text import (
    BACKGROUND_KINDS,
    MIN_CONTRAST,
    TextSampler,
    TextSettings,
    contrast,
    draw_text,
)
from petzval.data.corpus.text_pictures import (
    brief_caption,
    dense_caption,
    read_strings,
    write_texts,
)
from petzval.data.corpus.words import BUILT_IN_WORDS
from petzval.data.palette import BACKGROUND_COLOURS
from petzval.errors import ConfigError, DataError
from petzval.resolution import PRESETS

FONTS = find_fonts()
SMALL = TextSettings(seed=5, base=256)


def sampler(words: Sequence[str] = (), settings: TextSettings = SMALL) -> TextSampler:
    return TextSampler(settings, FONTS, {"": words} if words else BUILT_IN_WORDS)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_picture_is_a_function_of_seed_and_index_alone() -> None:
    one, other = sampler(), sampler()
    forwards = [draw_text(one.sample(i))[0].tobytes() for i in range(6)]
    backwards = [draw_text(other.sample(i))[0].tobytes() for i in reversed(range(6))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 6
    assert sampler(settings=TextSettings(seed=6, base=256)).sample(0) != one.sample(0)


def test_the_ground_truth_is_true() -> None:
    turned = blurred = 0
    kinds: set[str] = set()
    for index in range(60):
        sample = sampler().sample(index)
        picture, (left, top, right, bottom) = draw_text(sample)
        size = sample.resolution
        assert picture.size == (size.width, size.height) and size in PRESETS[256].values()
        assert 0 <= left < right <= size.width and 0 <= top < bottom <= size.height
        # Taking the letters away leaves the background: what differs lies in the box.
        invisible = BACKGROUND_COLOURS[sample.background.colours[0]]
        bare = draw_text(dataclasses.replace(sample, rgb=invisible))[0]
        differs = (
            np.abs(np.asarray(picture, np.int16) - np.asarray(bare, np.int16)).max(axis=2) > 90
        )
        if differs.any():
            rows, columns = np.nonzero(differs)
            assert top - 1 <= rows.min() and rows.max() <= bottom
            assert left - 1 <= columns.min() and columns.max() <= right
        for name in sample.background.colours:
            assert contrast(sample.rgb, BACKGROUND_COLOURS[name]) >= MIN_CONTRAST
        assert sample.font.covers(sample.text)
        turned += sample.rotation != 0
        blurred += sample.blur > 0
        kinds.add(sample.background.kind)
    assert 10 <= turned <= 40 and 8 <= blurred <= 35
    assert kinds == set(BACKGROUND_KINDS)


def test_letters_have_the_colour_the_truth_says() -> None:
    sample = next(
        each
        for each in map(sampler().sample, range(50))
        if each.blur == 0 and each.rotation == 0 and each.size > 30
    )
    picture, (left, top, right, bottom) = draw_text(sample)
    inside = np.asarray(picture)[top:bottom, left:right].reshape(-1, 3)
    assert (inside == sample.rgb).all(axis=1).mean() > 0.05


def test_captions_say_the_string_and_what_is_true_of_it() -> None:
    for index in range(30):
        sample = sampler().sample(index)
        _, box = draw_text(sample)
        brief, dense = brief_caption(sample), dense_caption(sample, box)
        for text in (brief, dense):
            assert f'"{sample.text}"' in text and sample.colour in text
        assert len(dense) > len(brief) and all(c in dense for c in sample.background.colours)
        assert ("turned" in dense) == (abs(sample.rotation) >= 1)


def test_fonts_cover_what_they_can_show_and_nothing_else() -> None:
    pillows = FONTS[0]
    assert pillows.path is None and pillows.covers("Open 24 hours!")
    assert not pillows.covers("営業中")
    dejavu = next(font for font in FONTS if font.name == "DejaVu Serif Bold")
    assert dejavu.covers("Straße Świeży ανοιχτό открыто") and dejavu.words == ("bold", "serif")
    assert not dejavu.covers("مفتوح"), "letters that join cannot be set one by one"
    assert not dejavu.covers("e\u0335"), "a mark that stands on another letter"
    assert not dejavu.covers("\ue000") and not dejavu.covers("\n")
    assert covering(FONTS, BUILT_IN_WORDS["en"]) == FONTS


def test_languages_that_no_font_covers_are_named() -> None:
    assert sampler().left_out == ("ja", "ko", "zh")
    with pytest.raises(DataError, match="no font covers any"):
        TextSampler(SMALL, FONTS, {"zh": ["营业"]})


def test_a_folder_of_fonts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no fonts"):
        find_fonts(tmp_path)
    source = FONTS[1].path
    assert source is not None
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "own.TTF").write_bytes(source.read_bytes())
    assert find_fonts(tmp_path)[-1].name == FONTS[1].name
    (tmp_path / "broken.otf").write_bytes(b"OTTO not a font")
    with pytest.raises(DataError, match=r"broken\.otf is not a font"):
        find_fonts(tmp_path)


def test_strings_of_a_file_are_used_whole(tmp_path: Path) -> None:
    path = tmp_path / "strings.txt"
    path.write_text("\ufeffGrand  Opening\n\nfree tea\nfree tea\n", encoding="utf-8")
    strings = read_strings(path)
    assert strings == ("Grand Opening", "free tea")
    seen = {sampler(strings).sample(index).text.lower() for index in range(12)}
    assert seen == {"grand opening", "free tea"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no strings"),
        (b"\n  \n", "has no strings"),
        ("caf\u00e9".encode("latin-1"), "is not UTF-8"),
        (b"fine\n" + b"x" * 201, r"strings\.txt:2: a string of more than 200"),
    ],
)
def test_files_of_strings_that_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "strings.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_strings(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_strings(tmp_path)


def test_strings_that_cannot_be_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no font covers '营业'"):
        sampler(["营业"]).sample(0)
    with pytest.raises(DataError, match="does not fit into"):
        sampler(["W" * 150], TextSettings(base=128)).sample(0)


def test_small_pictures_hold_their_text_too() -> None:
    tiny = sampler(settings=TextSettings(base=128, max_rotation=180.0))
    for index in range(40):
        sample = tiny.sample(index)
        _, (left, top, right, bottom) = draw_text(sample)
        assert right - left > 4 and bottom - top > 4
        assert left >= 0 and bottom <= sample.resolution.height


def test_a_series_on_disk_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert write_texts(whole, 4, SMALL) == ("ja", "ko", "zh")
    write_texts(broken, 2, SMALL)
    (broken / "0000" / "000001.json").unlink()  # killed before the last file of a picture
    (broken / "0000" / "000001.png").write_bytes(b"half")
    write_texts(broken, 4, SMALL)
    assert tree(whole) == tree(broken)
    record = json.loads((whole / "0000" / "000003.json").read_text(encoding="utf-8"))
    with Image.open(whole / "0000" / "000003.png") as picture:
        assert (record["text"]["width"], record["text"]["height"]) == picture.size
    assert record["caption"] == record["captions"]["dense"] != record["captions"]["brief"]
    assert record["licence"] == "CC0-1.0"
    assert record["text"]["text"] in record["caption"] and len(record["text"]["box"]) == 4


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "a", 1, SMALL)
    with pytest.raises(DataError, match="other settings"):
        write_texts(tmp_path / "a", 1, TextSettings(seed=9, base=256))
    (tmp_path / "a" / "texts.json").write_text("{")
    with pytest.raises(DataError, match="other settings"):
        write_texts(tmp_path / "a", 1, SMALL)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        write_texts(tmp_path, 1, SMALL)
    with pytest.raises(DataError, match="cannot be written"):
        write_texts(tmp_path / "mine.txt" / "b", 1, SMALL)
    with pytest.raises(DataError, match="0 pictures"):
        write_texts(tmp_path / "c", 0)


def test_settings_out_of_range() -> None:
    with pytest.raises(DataError, match="unknown base size 500"):
        TextSettings(base=500)
    with pytest.raises(ConfigError, match="max_words"):
        TextSettings(max_words=0)
    with pytest.raises(DataError, match="swap"):
        TextSettings(scale=(0.5, 0.1))
