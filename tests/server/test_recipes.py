"""Asking a picture over HTTP how it was made."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.server.running import Running


def _drawn(studio: Running, **body: object) -> tuple[bytes, dict[str, object]]:
    job = studio.wait(studio.submit(**body)["id"])
    picture = job["images"][0]
    return studio.client.get(picture["url"]).content, picture["recipe"]


def _read(
    studio: Running, content: bytes, kind: str = "image/png"
) -> tuple[int, dict[str, object]]:
    answer = studio.client.post("/v1/recipes/read", content=content, headers={"Content-Type": kind})
    return answer.status_code, answer.json()


def test_a_picture_tells_its_recipe(studio: Running) -> None:
    content, recipe = _drawn(studio, prompt="ein Fuchs, 狐狸", seed=2**62 + 1)
    assert _read(studio, content) == (200, {"recipe": recipe})
    assert recipe["prompt"] == "ein Fuchs, 狐狸"
    assert recipe["seed"] == 2**62 + 1


def _plain(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format)
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG that says it is 60,000 pixels wide and high, and a text that unpacks to a gigabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    text = chunk(b"iTXt", b"petzval\0\1\0\0\0" + zlib.compress(b" " * (64 << 20), 9))
    return b"\x89PNG\r\n\x1a\n" + head + text + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a picture"),
        (b"GIF89a", "not a picture"),
        (b"%PDF-1.4 a paper", "not a picture"),
        (_plain("PNG"), "holds no recipe"),
        (_plain("PNG")[:40], ""),
        (_plain("JPEG"), "holds no recipe"),
        (_plain("WEBP"), "holds no recipe"),
        (_bomb(), ""),
    ],
    ids=["empty", "stub", "paper", "plain", "cut", "jpeg", "webp", "bomb"],
)
def test_what_holds_none_is_answered_in_words(studio: Running, content: bytes, words: str) -> None:
    status, answer = _read(studio, content)
    assert status == 422
    error = answer["error"]
    assert isinstance(error, dict)
    assert words in error["message"]
    assert error["code"] == "no_recipe"
    assert "/" not in error["message"].split(";")[0]


def test_a_forged_recipe_is_refused(studio: Running) -> None:
    content, _ = _drawn(studio)
    with Image.open(io.BytesIO(content)) as picture:
        forged = PngInfo()
        forged.add_itxt("petzval", '{"format": 1, "prompt": 7}')
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", pnginfo=forged)
    status, answer = _read(studio, buffer.getvalue())
    assert status == 422, answer


def test_other_types_are_not_taken(studio: Running) -> None:
    status, _ = _read(studio, b"{}", "text/html")
    assert status == 415
