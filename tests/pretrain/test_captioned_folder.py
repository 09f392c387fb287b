"""A person's folder: what is read, how it is fitted, and what is named when it cannot be used."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petzval.errors import DataError
from petzval.pretrain.captioned_folder import (
    CaptionedPicture,
    crop_loss,
    describe,
    load_pixels,
    nearest_preset,
    read_folder,
)
from petzval.resolution import PRESETS, Resolution
from tests.pretrain.rings import SHAPES, draw_rings


def one(folder: Path, picture: Image.Image, name: str = "a.png", **options: Any) -> Path:
    picture.save(folder / name, **options)
    (folder / name).with_suffix(".txt").write_text("a picture")
    return folder


def test_pictures_are_read_by_name_with_their_captions(tmp_path: Path) -> None:
    folder = draw_rings(tmp_path / "rings")
    (folder / "notes.md").write_text("not a picture")
    (folder / ".hidden.png").write_text("not a picture either")
    (folder / "deeper.png").mkdir()
    with pytest.raises(DataError, match=r"deeper\.png: cannot be used: not a plain file"):
        read_folder(folder)
    (folder / "deeper.png").rmdir()
    pictures = read_folder(folder)
    assert [picture.file.stem for picture in pictures] == sorted(SHAPES)
    assert {p.file.stem: (p.width, p.height) for p in pictures} == SHAPES
    assert pictures[0].caption == "blue rings, zorp style"
    assert len({picture.sha256 for picture in pictures}) == len(SHAPES)


def test_a_trigger_word_stands_in_for_captions_that_are_absent(tmp_path: Path) -> None:
    folder = draw_rings(tmp_path)
    (folder / "red.txt").unlink()
    with pytest.raises(
        DataError, match=r"red\.png: has no caption \(red\.txt is absent\)"
    ) as caught:
        read_folder(folder)
    assert "--trigger" in caught.value.hint
    captions = {p.file.stem: p.caption for p in read_folder(folder, trigger=" zorp ")}
    assert captions["red"] == "zorp"
    assert captions["blue"] == "blue rings, zorp style"
    with pytest.raises(DataError, match="trigger word is blank"):
        read_folder(folder, trigger="  ")


def test_a_caption_is_one_line_whatever_wrote_it(tmp_path: Path) -> None:
    folder = one(tmp_path, Image.new("RGB", (32, 32)))
    (folder / "a.txt").write_bytes("\ufeff  ein  Käse,\r\n\tauf dem Tisch \n".encode())
    assert read_folder(folder)[0].caption == "ein Käse, auf dem Tisch"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "blank"),
        (b" \n\t", "blank"),
        (b"caf\xe9", "not UTF-8"),
        (b"a" * 70_000, "longer than"),
    ],
)
def test_a_caption_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    folder = one(tmp_path, Image.new("RGB", (32, 32)))
    (folder / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.txt: .*{said}"):
        read_folder(folder, trigger="zorp")


def _png(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header says any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + checksum

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _truncated(folder: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda _: b"", "0 bytes"),
        (lambda _: b"GIF, so to speak", "not a picture of an allowed form"),
        (_truncated, "damaged JPEG"),
        (lambda _: _png(20_000, 9_000, b""), "more than 134217728 pixels"),
        (lambda _: _png(100, 40_000, b""), "a side of more than 32768 pixels"),
        (lambda _: _png(64, 64, b"nonsense"), "damaged PNG"),
    ],
)  # fmt: skip
def test_a_picture_that_cannot_be_used_is_named(
    tmp_path: Path, content: Callable[[Path], bytes], said: str
) -> None:
    folder = draw_rings(tmp_path / "rings")
    (folder / "bad.jpg").write_bytes(content(tmp_path))
    (folder / "bad.txt").write_text("bad")
    with pytest.raises(DataError, match=said) as caught:
        read_folder(folder)
    assert caught.value.message.startswith(f"{folder / 'bad.jpg'}: ")
    assert caught.value.hint and "\n" not in caught.value.message


def test_a_folder_without_pictures_says_what_a_picture_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_folder(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        read_folder(tmp_path / "file")
    with pytest.raises(DataError, match=r"holds no picture \(1 other files\)") as caught:
        read_folder(tmp_path)
    assert ".png" in caught.value.hint


@pytest.mark.parametrize(
    ("height", "width", "aspect"),
    [
        (500, 500, "1:1"),
        (480, 640, "4:3"),
        (1000, 100, "1:2"),
        (1, 3000, "2:1"),
        (180, 320, "16:9"),
    ],
)
def test_the_bucket_is_the_nearest_in_aspect(height: int, width: int, aspect: str) -> None:
    assert nearest_preset(height, width, 256) == PRESETS[256][aspect]


def test_pictures_cover_their_bucket_and_keep_their_middle(tmp_path: Path) -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    [picture] = read_folder(one(tmp_path, Image.fromarray(pixels)))
    square = Resolution(128, 128)
    fitted = load_pixels(picture, square)
    assert fitted.shape == (128, 128, 3)
    assert fitted.min() > 230  # the white third alone, up to ringing at its edge
    assert crop_loss(picture, square) == pytest.approx(2 / 3)
    assert crop_loss(picture, Resolution(128, 256)) == pytest.approx(1 / 3)


def _is(colour: tuple[int, int, int]) -> Callable[[CaptionedPicture], bool]:
    def check(picture: CaptionedPicture) -> bool:
        middle = load_pixels(picture, Resolution(32, 32))[16, 16]
        return bool(np.abs(middle.astype(int) - colour).max() <= 3)

    return check


def test_every_kind_of_picture_becomes_rgb(tmp_path: Path) -> None:
    sixteen = Image.fromarray(np.full((40, 40), 257 * 128, np.uint16))
    kinds = {
        "alpha.png": (Image.new("RGBA", (40, 40), (255, 0, 0, 0)), _is((255, 255, 255))),
        "half.png": (Image.new("LA", (40, 40), (0, 128)), _is((127, 127, 127))),
        "grey.png": (Image.new("L", (40, 40), 90), _is((90, 90, 90))),
        "sixteen.png": (sixteen, _is((128, 128, 128))),
        "cmyk.jpg": (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), _is((254, 0, 0))),
        "bit.png": (Image.new("1", (40, 40), 1), _is((255, 255, 255))),
        "palette.png": (Image.new("RGB", (40, 40), (9, 99, 199)).quantize(4), _is((9, 99, 199))),
    }
    for name, (image, _) in kinds.items():
        one(tmp_path, image, name)
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    one(tmp_path, frames[0], "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    checks = {name: check for name, (_, check) in kinds.items()} | {"moving.webp": _is((255, 0, 0))}
    wrong = [p.file.name for p in read_folder(tmp_path) if not checks[p.file.name](p)]
    assert wrong == []


def test_a_picture_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    [picture] = read_folder(one(tmp_path, Image.new("RGB", (60, 30)), "a.jpg", exif=exif))
    assert (picture.width, picture.height) == (30, 60)


def test_one_line_tells_buckets_crop_and_what_is_small(tmp_path: Path) -> None:
    folder = draw_rings(tmp_path, captions=False)
    line = describe(read_folder(folder, trigger="zorp"), 256)
    assert line == (
        "4 pictures: 256x256 (2), 320x208 (1), 352x176 (1); the crop takes at most 5%; "
        "4 are smaller than that and enlarged; 4 captioned by the trigger word"
    )
