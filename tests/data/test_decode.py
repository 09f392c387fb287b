"""Pictures of every kind, and files that are none: decoded rightly, or refused with a reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petzval.data.decode import TRANSPOSES, Decoded, Limits, RefusedPicture, decode, read_bytes
from tests.data.corpus.planted import encoded, jpeg, scene

RED, GREEN = (255, 0, 0), (0, 128, 0)


def reason_of(data: bytes, name: str = "", **limits: int) -> str:
    with pytest.raises(RefusedPicture) as refused:
        decode(data, name, Limits(**limits))
    return refused.value.reason


def centre(picture: Decoded) -> list[int]:
    return picture.pixels[picture.height // 2, picture.width // 2].tolist()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_bomb(width: int, height: int) -> bytes:
    """A small file whose header promises a very large picture of zeros."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


# ── forms ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_allowed_form_is_read_and_known_by_its_content(form: str) -> None:
    data = encoded(Image.new("RGB", (20, 10), GREEN), form)
    picture = decode(data, f"a.{form.lower()}")
    assert (picture.form, picture.height, picture.width) == (form, 10, 20)
    assert np.abs(np.array(centre(picture)) - GREEN).max() <= 2
    assert set(picture.flags) <= {"palette"}


def test_an_extension_that_lies_is_a_remark() -> None:
    assert decode(jpeg(scene(0)), "cat.PNG").flags == ("wrong-extension",)
    assert decode(jpeg(scene(0)), "cat.exe").flags == ("wrong-extension",)
    assert decode(jpeg(scene(0)), "cat.JPEG").flags == ()
    assert decode(jpeg(scene(0)), "no extension").flags == ()


@pytest.mark.parametrize("orientation", sorted(TRANSPOSES))
def test_a_picture_is_turned_as_its_exif_asks(orientation: int) -> None:
    from PIL import ImageOps

    image = Image.new("RGB", (32, 16), GREEN)
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    picture = decode(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert picture.flags == ("rotated",)
    assert np.array_equal(picture.pixels, np.asarray(expected))


def test_an_orientation_that_does_not_exist_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decode(encoded(Image.new("RGB", (4, 2)), "PNG", exif=exif)).width == 4


def test_cmyk_becomes_rgb() -> None:
    picture = decode(jpeg(Image.new("CMYK", (16, 16), (0, 255, 255, 0))))
    assert picture.flags == ("cmyk",)
    assert centre(picture)[0] > 200 and max(centre(picture)[1:]) < 60


def test_sixteen_bits_become_eight() -> None:
    grey = np.full((8, 8), 32_896, np.uint16)
    for form in ("PNG", "TIFF"):
        picture = decode(encoded(Image.fromarray(grey), form))
        assert picture.flags == ("16-bit", "grey")
        assert centre(picture) == [128, 128, 128]


def test_sixteen_bits_of_colour_become_eight() -> None:
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">HHH", 65_535, 32_896, 0))
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", row) + png_chunk(b"IEND", b"")
    assert centre(decode(b"\x89PNG\r\n\x1a\n" + chunks)) == [255, 128, 0]


def test_floating_point_samples_are_refused() -> None:
    data = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    assert reason_of(data) == "samples are floating-point numbers of unknown range"


def test_alpha_lies_on_white() -> None:
    half = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG"))
    assert half.flags == ("alpha",) and centre(half) == [255, 127, 127]
    opaque = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "PNG"))
    assert opaque.flags == () and centre(opaque) == [255, 0, 0]


def test_a_palette_with_a_transparent_colour_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 0, 128, 0])
    data = encoded(image, "PNG", transparency=1)
    picture = decode(data)
    assert picture.flags == ("alpha", "palette") and centre(picture) == [255, 255, 255]


def test_a_colour_key_lies_on_white() -> None:
    picture = decode(encoded(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED))
    assert picture.flags == ("alpha",) and centre(picture) == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "YCbCr", "LAB"])
def test_every_other_mode_becomes_rgb(mode: str) -> None:
    form = "TIFF" if mode in {"YCbCr", "LAB"} else "PNG"
    picture = (
        decode(encoded(Image.new("RGB", (8, 8), "white").convert(mode), form))
        if (mode != "LAB")
        else decode(encoded(Image.new("LAB", (8, 8), (255, 128, 128)), form))
    )
    assert picture.pixels.shape == (8, 8, 3) and min(centre(picture)) > 240


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    picture = decode(data)
    assert "animated" in picture.flags and centre(picture)[0] > 200


def test_of_several_pictures_in_a_file_the_first_is_taken() -> None:
    pages = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    for form in ("TIFF", "MPO"):
        picture = decode(encoded(pages[0], form, save_all=True, append_images=pages[1:]))
        assert picture.flags == ("multi-picture",) and centre(picture)[0] > 200


# ── hostile files ────────────────────────────────────────────────────────────────────────────────


def test_zero_bytes() -> None:
    assert reason_of(b"") == "0 bytes"


@pytest.mark.parametrize(
    "data",
    [b"hello", bytes(5000), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"8BPS\0\1", b"RIFF____AVI "],
    ids=["text", "zeros", "postscript", "svg", "photoshop", "video"],
)
def test_other_forms_are_refused(data: bytes) -> None:
    assert reason_of(data, "a.png") == "not a picture of an allowed form"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_truncation_is_refused_or_whole(form: str) -> None:
    whole = encoded(scene(1, 48, 64).convert("RGB"), form)
    for length in (0, 3, 12, 40, len(whole) // 3, len(whole) * 2 // 3):
        reason = reason_of(whole[:length])
        assert reason == "0 bytes" or reason.startswith(("damaged", "not a picture")), reason
        assert "0x" not in reason


def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(5)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = np.frombuffer(encoded(scene(2, 32, 32), form), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            places = rng.integers(0, len(damaged), 12)
            damaged[places] = rng.integers(0, 256, 12)
            try:
                picture = decode(damaged.tobytes(), limits=Limits(max_pixels=1 << 20))
                assert picture.pixels.dtype == np.uint8
            except RefusedPicture as error:
                assert error.reason and "0x" not in error.reason


@pytest.mark.parametrize("size", [(12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    data = png_bomb(*size)
    assert len(data) < 3000
    assert reason_of(data) in {f"more than {1 << 27} pixels", "damaged header of PNG"}


def test_a_strip_is_refused() -> None:
    assert reason_of(png_bomb(1_000_000, 10)) == "a side of more than 32768 pixels"


def test_a_jpeg_with_very_many_scans_is_refused() -> None:
    data = encoded(scene(0, 64, 64), "JPEG", progressive=True)
    start, end = data.index(b"\xff\xda"), len(data) - 2
    last_scan = data.rindex(b"\xff\xda")
    many = data[:end] + data[last_scan:end] * 300 + data[end:]
    assert start < last_scan
    assert reason_of(many) == "more than 256 scans"
    assert decode(data).flags == ()


def test_a_png_with_a_very_large_text_is_refused() -> None:
    packed = b"Comment\0\0" + zlib.compress(bytes(80 << 20), 9)
    data = encoded(Image.new("RGB", (4, 4)), "PNG")
    assert reason_of(data[:33] + png_chunk(b"zTXt", packed) + data[33:]).startswith("damaged")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_what_follows_the_end_is_remarked(form: str) -> None:
    image = scene(3, 40, 40)
    data = encoded(image, form)
    assert "trailing-data" not in decode(data).flags
    polyglot = decode(data + b"PK\x03\x04 also an archive \xff\xd9 \x00\x00\x00\x00IEND")
    assert "trailing-data" in polyglot.flags
    assert np.array_equal(polyglot.pixels, decode(data).pixels)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name in ("pipe.jpg", "folder.jpg", "zero.jpg", "loop.jpg", "nul\0.jpg", "absent.jpg"):
        with pytest.raises(RefusedPicture) as refused:
            read_bytes(tmp_path / name, Limits())
        assert refused.value.reason in {
            "not a plain file", "the file cannot be opened", "the file is gone"
        }  # fmt: skip


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RefusedPicture, match="more than 268435456 bytes"):
        read_bytes(tmp_path / "large.png", Limits())
