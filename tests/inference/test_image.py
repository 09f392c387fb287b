from __future__ import annotations

import errno
import io
import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from petzval.errors import ConfigError, PetzvalError, RequestError
from petzval.inference.image import (
    CHUNK_LIMIT_BYTES,
    FILE_LIMIT_BYTES,
    encode,
    read_recipe,
    write_atomically,
)
from petzval.inference.recipe import RECIPE_LIMIT_BYTES, Recipe, recipe_from_json
from petzval.inference.request import GeneratedImage, GenerationRequest, request_from_recipe

RECIPE = Recipe(
    petzval="0.1.0",
    model="mini",
    checkpoint="0123abcd",
    prompt='一只猫 says "hi" \u202e\x1b[31m 🦊',
    negative_prompt="blurry",
    seed=2**63 - 1,
    steps=20,
    guidance=4.0,
    height=32,
    width=48,
    mu=1.9162345678901234,
    solver="euler",
    parity="default",
    template_date="2026-05-26",
    truncate="keep_tail",
    markers="neutralise",
    max_tokens=512,
    allow_any_size=True,
    dtype="float32",
    device="cpu",
    torch="2.13.0",
)


def a_picture(recipe: Recipe = RECIPE) -> GeneratedImage:
    """Any picture with this recipe."""
    rows = np.arange(32 * 48 * 3, dtype=np.uint32).reshape(32, 48, 3) % 251
    return GeneratedImage(pixels=rows.astype(np.uint8), recipe=recipe)


@pytest.mark.parametrize("name", ["fox.png", "fox.jpg", "fox.JPEG", "fox.webp"])
def test_the_recipe_comes_back_from_every_format(tmp_path: Path, name: str) -> None:
    path = a_picture().save(tmp_path / "new" / "folders" / name)
    assert read_recipe(path) == RECIPE
    assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize("format", ["png", "webp"])
def test_lossless_formats_keep_every_pixel(format: str) -> None:
    data = a_picture().encode(format)
    assert data == a_picture().encode(format)
    with Image.open(io.BytesIO(data)) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), a_picture().pixels)


def test_a_jpeg_looks_like_thea_picture() -> None:
    with Image.open(io.BytesIO(a_picture().encode("jpeg"))) as picture:
        difference = np.asarray(picture).astype(int) - a_picture().pixels.astype(int)
    assert np.abs(difference).mean() < 12


def test_a_request_from_a_recipe_leaves_nothing_open() -> None:
    request = request_from_recipe(RECIPE)
    assert isinstance(request, GenerationRequest)
    for name in ("steps", "guidance", "mu", "height", "width", "truncate", "markers"):
        assert getattr(request, name) == getattr(RECIPE, name)
    assert request.seeds == (RECIPE.seed,)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    for name in ("fox.gif", "fox", "fox.png.exe"):
        with pytest.raises(RequestError, match="format"):
            a_picture().save(tmp_path / name)
    with pytest.raises(RequestError, match="unknown format 'bmp'"):
        a_picture().encode("bmp")


def test_a_recipe_too_long_for_a_jpeg_says_what_holds_it() -> None:
    long = replace(RECIPE, prompt="x" * 100_000)
    with pytest.raises(RequestError, match="too long for a JPEG") as caught:
        a_picture(long).encode("jpeg")
    assert "PNG" in caught.value.hint
    assert len(a_picture(long).encode("png")) < 20_000


def test_a_recipe_longer_than_any_file_may_carry_is_not_written() -> None:
    with pytest.raises(RequestError, match="bytes"):
        a_picture(replace(RECIPE, prompt="x" * RECIPE_LIMIT_BYTES)).encode("png")


# ── reading what others wrote ─────────────────────────────────────────────────────────────────────


def _forged(path: Path, text: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("petzval", text, zip=True)
    Image.new("RGB", (16, 16)).save(path, pnginfo=chunks)
    return path


@pytest.mark.parametrize("name", ["plain.png", "plain.jpg", "plain.webp", "plain.gif", "plain.bmp"])
def test_a_picture_without_a_recipe_says_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(RequestError, match="holds no recipe"):
        read_recipe(path)


def test_another_programs_comment_is_not_a_recipe(tmp_path: Path) -> None:
    for comment in (b"ASCII\0\0\0{}", b"UNICODE\0hello", b"\0\0\0\0\0\0\0\0"):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = comment
        path = tmp_path / "photo.jpg"
        Image.new("RGB", (16, 16)).save(path, exif=exif.tobytes())
        with pytest.raises(RequestError, match="holds no recipe"):
            read_recipe(path)


def _changed(**changes: Any) -> str:
    return json.dumps(json.loads(RECIPE.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("not json", "not JSON"),
        ("[]", "expected an object"),
        ("null", "expected an object"),
        ("{}", "missing"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": "a", "prompt": "b"}', "twice"),
        (_changed(surprise=1), "unknown setting 'surprise'"),
        (_changed(steps=10_000), "steps"),
        (_changed(steps="20"), "steps"),
        (_changed(steps=True), "steps"),
        (_changed(seed=-5), "seed"),
        (_changed(seed=1e400), "not a JSON number"),
        (_changed(guidance=float("nan")), "not a JSON number"),
        (_changed(height=10**12), "height"),
        (_changed(parity="evil"), "parity"),
        (_changed(prompt=["a"]), "prompt"),
        (_changed(format=2), "format 2"),
        (_changed(format=0), "format 0"),
        (_changed(format=-5), "format -5"),
        (_changed(device=""), "device"),
        (_changed(device="   "), "device"),
        (_changed(threads=0), "threads"),
        (_changed(threads=10**6), "threads"),
    ],
)
def test_a_forged_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = _forged(tmp_path / "forged.png", text)
    with pytest.raises(PetzvalError, match=message) as caught:
        read_recipe(path)
    assert "forged.png" in caught.value.message
    assert len(caught.value.message) < 400


def test_a_forged_recipe_of_legal_form_is_checked_like_any_request() -> None:
    odd = recipe_from_json(_changed(height=17, width=16, solver="evil"), where="forged.png")
    with pytest.raises(RequestError, match="solver"):
        request_from_recipe(odd)


def test_a_recipe_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("RGB", (16, 16)).save(path)
    data = path.read_bytes()
    body = b"petzval\0\x01\0\0\0" + zlib.compress(b"x" * (64 << 20), 9)
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"iTXt" + body))
    path.write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(RequestError):
        read_recipe(path)


def test_a_recipe_older_than_the_number_of_threads_is_read() -> None:
    fields = json.loads(RECIPE.to_json())
    del fields["threads"]
    assert recipe_from_json(json.dumps(fields), where="old.png") == RECIPE


def _png(path: Path, *chunks: tuple[bytes, bytes], side: int = 16) -> Path:
    """A PNG's header, some chunks, and no pixels to speak of."""
    header = (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in (header, *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body
        data += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("side", [10_000, 14_000, 60_000])
def test_a_huge_picture_is_looked_at_without_a_warning(tmp_path: Path, side: int) -> None:
    with pytest.raises(RequestError, match="holds no recipe") as caught:
        read_recipe(_png(tmp_path / "huge.png", side=side))
    assert "damaged" not in caught.value.message
    recipe = b"petzval\0\0\0\0\0" + RECIPE.to_json().encode()
    assert read_recipe(_png(tmp_path / "ours.png", (b"iTXt", recipe), side=10_000)) == RECIPE


def test_a_huge_text_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the decoder was called")

    monkeypatch.setattr(Image, "open", never)
    path = _png(tmp_path / "text.png", (b"tEXt", b"Comment\0" + bytes(CHUNK_LIMIT_BYTES)))
    with pytest.raises(RequestError, match="before the pixels"):
        read_recipe(path)
    with (tmp_path / "long.jpg").open("wb") as file:
        file.truncate(FILE_LIMIT_BYTES + 1)
    with pytest.raises(RequestError, match="bytes"):
        read_recipe(tmp_path / "long.jpg")


@pytest.mark.parametrize("keep", [0, 4, 20, 45, 90])
def test_a_file_that_is_no_whole_picture_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(a_picture().encode("png")[:keep])
    with pytest.raises(PetzvalError):
        read_recipe(path)


def test_what_is_no_picture_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("hello")
    for path, message in [
        (tmp_path / "absent.png", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "notes.png", "is not a picture"),
    ]:
        with pytest.raises(RequestError, match=message):
            read_recipe(path)


def test_bit_rot_never_escapes_the_tree_of_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "rot"
    for format in ("png", "jpeg", "webp"):
        whole = np.frombuffer(a_picture().encode(format), np.uint8)
        for _ in range(60):
            rotten = whole.copy()
            rotten[rng.integers(0, min(len(whole), 900), 8)] = rng.integers(0, 256, 8)
            path.write_bytes(rotten.tobytes())
            try:
                recipe = read_recipe(path)
            except PetzvalError:
                continue
            assert isinstance(recipe, Recipe)


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def test_a_file_on_the_way_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RequestError, match="is a file, not a folder"):
        a_picture().save(tmp_path / "file" / "fox.png")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["a\0.png", "x" * 300 + ".png", "~nouser/fox.png"])
def test_a_name_that_no_file_system_takes_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as caught:
        a_picture().save(name)
    assert len(caught.value.message) < 400 and caught.value.hint
    assert os.listdir(tmp_path) == []


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "fox.png").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        a_picture().save(tmp_path / "fox.png")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EACCES, "may not be written"),
        (errno.EROFS, "may not be written"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(b"old")

    class FullDisk(io.BytesIO):
        def write(self, data: Any, /) -> int:
            raise OSError(number, os.strerror(number))

    def full_disk(descriptor: int, mode: str) -> FullDisk:
        assert mode == "wb"
        os.close(descriptor)
        return FullDisk()

    monkeypatch.setattr(os, "fdopen", full_disk)
    with pytest.raises(RequestError, match=message):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["fox.png"]


def test_an_interruption_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "fox.png", b"data")
    assert os.listdir(tmp_path) == []


def test_the_same_picture_gives_the_same_bytes() -> None:
    picture = a_picture()
    assert encode(picture.pil(), RECIPE, "png") == picture.encode()


def test_a_damaged_json_names_the_file() -> None:
    with pytest.raises(ConfigError, match=r"fox\.png: recipe"):
        recipe_from_json("{", where="fox.png")
