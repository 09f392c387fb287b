"""What the bytes of a picture file say about themselves, without decoding: its form and its end."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

FORM_OF_SUFFIX: Mapping[str, str] = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""Allowed forms by the extension they usually have."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)

# A marker other than stuffing (00), restarts (D0 to D7) and fill bytes (FF).
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def sniff(data: bytes) -> str | None:
    """The form that the first bytes promise; None if it is not an allowed one."""
    for magic, form in _MAGIC:
        if data.startswith(magic):
            return form
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def num_scans(data: bytes) -> int:
    """Upper bound of the scans of a JPEG: its markers, and what looks like one in metadata."""
    return data.count(bytes((0xFF, _START_OF_SCAN)))


def has_trailing_data(data: bytes, form: str) -> bool:
    """Whether something follows the picture's end, as in a file that is two things at once.

    Phones append videos, so this is a remark and no refusal. TIFF has no end to compare with.
    """
    end = _ENDS[form](data) if form in _ENDS else None
    return end is not None and end < len(data)


def _end_of_png(data: bytes) -> int | None:
    place = 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        kind, place = data[place + 4 : place + 8], place + 12 + length
        if kind == b"IEND":
            return place
    return None


def _end_of_jpeg(data: bytes) -> int | None:
    place = 2
    while (match := _JPEG_MARKER.search(data, place)) is not None:
        marker, place = match.group(1)[0], match.end()
        if marker == _END_OF_IMAGE:
            return place
        # Every marker that is left has a segment with its length; scan data follows it at once.
        place += int.from_bytes(data[place : place + 2])
    return None


def _end_of_webp(data: bytes) -> int | None:
    length = int.from_bytes(data[4:8], "little")
    return 8 + length + length % 2


def _end_of_bmp(data: bytes) -> int | None:
    length = int.from_bytes(data[2:6], "little")
    return length if length > 14 else None  # some programs leave it out


def _end_of_gif(data: bytes) -> int | None:
    if len(data) < 13:
        return None
    place = 13 + _colour_table(data[10])
    while place < len(data):
        kind = data[place]
        if kind == 0x3B:
            return place + 1
        if kind == 0x21:
            place += 2
        elif kind == 0x2C and place + 9 < len(data):
            place += 11 + _colour_table(data[place + 9])
        else:
            return None
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return None


def _colour_table(flags: int) -> int:
    """Bytes of the colour table that follows, if one does."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


_ENDS: Mapping[str, Callable[[bytes], int | None]] = {
    "PNG": _end_of_png,
    "JPEG": _end_of_jpeg,
    "WEBP": _end_of_webp,
    "BMP": _end_of_bmp,
    "GIF": _end_of_gif,
}
