"""The picture of a row: found at its place, and the one that was imported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petzval.data.corpus.pictures import PictureReader
from petzval.data.decode import RefusedPicture
from tests.data.corpus.planted import jpeg, scene


def row_of(path: Path | str, data: bytes, **other: Any) -> dict[str, Any]:
    key = hashlib.sha256(data).hexdigest()
    row = {"id": key, "path": str(path), "member": "", "offset": 0, "num_bytes": len(data)}
    return row | other


def test_a_row_is_read_at_its_place(tmp_path: Path) -> None:
    data = jpeg(scene(4))
    (tmp_path / "heap").write_bytes(b"before" + data + b"after")
    reader = PictureReader(tmp_path)
    row = row_of("heap", data, offset=6, member="a.jpg")
    assert reader.read(row) == data
    assert reader.load(row).flags == ()


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    data = jpeg(scene(4))
    path = tmp_path / "a.jpg"
    reader = PictureReader(tmp_path)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: path.write_bytes(data[:-1] + b"!"), "changed since it was imported"),
        (lambda: path.write_bytes(data[:-1]), "the file is shorter than when it was imported"),
        (path.unlink, "the file is gone"),
    ]
    for change, expected in cases:
        change()
        with pytest.raises(RefusedPicture) as refused:
            reader.load(row_of("a.jpg", data))
        assert refused.value.reason == expected
