"""Damaged and foreign files: each gets one clear refusal, and none is opened further."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from petzval.errors import CheckpointError
from petzval.weights.header import read_header
from tests.weights.support import entry, write_file


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry([2, 3], 0, 24),
        "empty": entry([0, 5], 24, 24, "BF16"),
        "scalar": entry([], 24, 32, "I64"),
    }
    infos = read_header(write_file(tmp_path / "a.safetensors", header, bytes(32)))
    assert list(infos) == ["b", "empty", "scalar"]
    assert infos["b"].shape == (2, 3)
    assert infos["b"].num_bytes == 24
    assert infos["scalar"].num_elements == 1
    assert infos["empty"].torch_dtype == torch.bfloat16


HEADERS: list[tuple[Any, bytes, str]] = [
    (b"", b"", "the header is damaged"),
    (b"{", b"", "the header is damaged, line 1"),
    (b'{"a": \xff}', b"", "damaged: not UTF-8"),
    (b"[" * 50_000, b"", "nested too deeply"),
    (b"[]", b"", "the header is not an object"),
    (b'{"a": 1, "a": 2}', b"", "'a' is given twice"),
    ({"a": 5}, b"", "key 'a': its header entry is not an object"),
    ({"a": entry([1], 0, 4, "F128")}, bytes(4), "key 'a': dtype 'F128' is unknown"),
    ({"a": entry([1], 0, 4, "NaN")}, bytes(4), "dtype 'NaN' is unknown"),
    ({"a": entry([1], 0, 4, ["F32"])}, bytes(4), "is unknown"),
    ({"a": entry([-1], 0, 4)}, bytes(4), "is not a list of sizes"),
    ({"a": entry([True], 0, 4)}, bytes(4), "is not a list of sizes"),
    ({"a": entry([2**70], 0, 4)}, bytes(4), "is not a list of sizes"),
    ({"a": entry([1.0], 0, 4)}, bytes(4), "is not a list of sizes"),
    ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "are not two byte positions"),
    ({"a": entry([1], -4, 0)}, bytes(4), "are not two byte positions"),
    ({"a": entry([2], 0, 4)}, bytes(4), "[2] of F32 takes 8 bytes, but its offsets span 4"),
    ({"a": entry([1], 4, 0)}, bytes(4), "offsets span -4"),
    ({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, bytes(6), "key 'b' overlaps"),
    ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4), "overlaps"),
    ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), "key 'b' leaves a gap"),
    ({"a": entry([2], 0, 8)}, bytes(4), "truncated at key 'a'"),
    ({"a": entry([1], 0, 4)}, bytes(9), "5 bytes more than the header accounts for"),
    ({"a": entry([2**57], 0, 2**59)}, b"", "truncated at key 'a'"),
    ({"a": entry([1] * 100_000, 0, 4)}, bytes(4), "key 'a': has 100,000 dimensions"),
    ({"a" * 100_000: entry([1], 0, 4)}, bytes(4), "a key has 100,000 characters"),
    ({"a": entry(["x" * 100_000], 0, 4)}, bytes(4), "is not a list of sizes"),
    ({"a": entry([1], 0, 4, "x" * 100_000)}, bytes(4), "is unknown"),
]


@pytest.mark.parametrize(("header", "data", "message"), HEADERS)
def test_a_damaged_header_is_refused(
    tmp_path: Path, header: Any, data: bytes, message: str
) -> None:
    path = write_file(tmp_path / "a.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"abc", "truncated in the header or not safetensors"),
        ((2**63).to_bytes(8, "little"), "truncated in the header"),
        ((10**9).to_bytes(8, "little") + b"{}", "the header alone should take 1,000,000,000"),
        (b"GGUF" + bytes(40), "this is a GGUF file"),
        (b"\x93NUMPY" + bytes(40), "this is a NumPy array"),
        (b"\x89HDF\r\n\x1a\n", "this is an HDF5 file"),
        (b"\x1f\x8b" + bytes(40), "this is a gzip archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "this is a picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "this is a web page"),
    ],
)
def test_what_is_no_safetensors_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert message in caught.value.message


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="claims 200,000,000 bytes"):
        read_header(path)


class Bomb:
    """Unpickling this would be seen."""

    opened = False

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (setattr, (Bomb, "opened", True))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_unopened(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps([Bomb(), "x" * 100], protocol=protocol))
    with pytest.raises(CheckpointError, match="this is a pickle") as caught:
        read_header(path)
    assert "can run any program" in caught.value.hint
    assert not Bomb.opened


def test_a_torch_archive_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="a zip archive, most likely a PyTorch pickle"):
        read_header(path)
    assert not Bomb.opened


def test_a_length_that_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    header = json.dumps({"a": entry([1], 0, 4)}).encode()
    header += b" " * (0x0280 - len(header))  # the length's first bytes are then 80 02
    path = write_file(tmp_path / "a.safetensors", header, bytes(4))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert list(read_header(path)) == ["a"]


def test_a_folder_and_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder; expected a safetensors file"):
        read_header(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_header(tmp_path / "none.safetensors")
