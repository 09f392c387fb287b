"""GGUF files: read as the format's own library reads them, damaged ones refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from petzval.errors import CheckpointError
from petzval.kernels.ggml import BLOCK_FORMATS
from petzval.weights.gguf_header import read_gguf_header
from petzval.weights.gguf_source import GgufSource
from tests.kernels.test_ggml import random_blocks
from tests.weights.formats import write_gguf

PLAIN = ("F32", "F16", "BF16")


@pytest.fixture
def every_type(tmp_path: Path) -> Path:
    values = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
    tensors = {name.lower(): (values, name) for name in PLAIN}
    tensors |= {name.lower(): (random_blocks(name), name) for name in BLOCK_FORMATS}
    return write_gguf(tmp_path / "x.gguf", tensors, {"petzval.config": "{}"}, {"a.count": 7})


def test_every_type_is_read_as_the_library_reads_it(every_type: Path) -> None:
    source = GgufSource.open(every_type)
    reader = gguf.GGUFReader(every_type)
    assert len(source) == len(reader.tensors) == len(PLAIN) + len(BLOCK_FORMATS)
    for tensor in reader.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        info = source.infos[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist())) == expected.shape
        assert info.num_bytes == tensor.n_bytes
        assert torch.equal(
            source.read(tensor.name, torch.float32), torch.from_numpy(expected.copy())
        )
    assert source.settings["petzval.config"] == "{}"
    assert source.settings["a.count"] == 7


def test_the_digest_follows_the_numbers(every_type: Path) -> None:
    first = GgufSource.open(every_type).digest()
    content = bytearray(every_type.read_bytes())
    content[-1] ^= 1
    every_type.write_bytes(content)
    assert GgufSource.open(every_type).digest() != first


def test_a_vocabulary_is_walked_over(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x", "lens")
    writer.add_array("tokens", [f"token {i}" for i in range(1000)])
    writer.add_array("scores", [0.5] * 1000)
    writer.add_array("few", [1, 2, 3])
    writer.add_tensor("a", np.ones((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufSource.open(tmp_path / "x")
    assert source.settings.keys() == {"general.architecture", "few"}
    assert source.settings["few"] == (1, 2, 3)
    assert torch.equal(source.read("a"), torch.ones(2, 2))


def test_a_folded_tensor_gets_its_shape_back(tmp_path: Path) -> None:
    def write(shape: list[int]) -> Path:
        writer = gguf.GGUFWriter(tmp_path / "x", "lens")
        writer.add_array("comfy.gguf.orig_shape.a", shape)
        writer.add_tensor("a", np.arange(12, dtype=np.float32).reshape(3, 4))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "x"

    assert GgufSource.open(write([2, 2, 3])).read("a").shape == (2, 2, 3)
    for wrong in ([2, 2], [12, -1]):
        with pytest.raises(CheckpointError, match=r"key 'a' has shape \[3, 4\], which cannot be"):
            GgufSource.open(write(wrong))


def header(
    *,
    tensors: int = 1,
    settings: int = 0,
    body: bytes = b"",
    version: int = 3,
    magic: bytes = b"GGUF",
) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, settings) + body


def entry(
    name: bytes = b"a", sizes: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0
) -> bytes:
    text = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(sizes))
    return (
        text
        + b"".join(struct.pack("<Q", size) for size in sizes)
        + struct.pack("<IQ", kind, offset)
    )


def setting(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


HUGE = struct.pack("<Q", 1 << 62)
HOSTILE: list[tuple[str, bytes, str]] = [
    ("empty", b"", "cannot be read as GGUF"),
    ("short", b"GGUF", "truncated in the header"),
    ("another kind", b"GGML" + bytes(100), "this is no GGUF file"),
    ("version", header(version=9), "version 9 is not read"),
    ("many tensors", header(tensors=1 << 60), "claims 1,152,921,504,606,846,976 tensors"),
    ("many settings", header(settings=1 << 40), "claims 1,099,511,627,776 settings"),
    ("long name", header(body=HUGE), "a name claims"),
    ("name beyond the end", header(body=struct.pack("<Q", 999)), "truncated in the header"),
    ("long text", header(settings=1, body=setting(b"a", 8, HUGE)), "truncated in the header"),
    (
        "long list",
        header(settings=1, body=setting(b"a", 9, struct.pack("<I", 4) + HUGE)),
        "truncated in the header",
    ),
    (
        "list of lists",
        header(settings=1, body=setting(b"a", 9, struct.pack("<I", 9) + HUGE)),
        "a list has the unknown type 9",
    ),
    (
        "endless list of texts",
        header(settings=1, body=setting(b"a", 9, struct.pack("<I", 8) + HUGE)),
        "truncated in the header",
    ),
    ("unknown setting", header(settings=1, body=setting(b"a", 77, b"")), "unknown type 77"),
    (
        "a setting twice",
        header(settings=2, body=setting(b"a", 0, b"1") * 2),
        "setting 'a' is there twice",
    ),
    (
        "alignment",
        header(settings=1, body=setting(b"general.alignment", 4, bytes(4)) + entry()),
        "the alignment is 0",
    ),
    ("dimensions", header(body=entry(sizes=(1,) * 9)), "key 'a' has 9 dimensions"),
    ("giant shape", header(body=entry(sizes=(1 << 62, 1 << 62))), "truncated at key 'a'"),
    ("beyond the end", header(body=entry(offset=1 << 62)), "truncated at key 'a'"),
    ("unknown type", header(body=entry(kind=99)), "stored as type 99, which is not read"),
    ("unread type", header(body=entry(kind=20)), "stored as IQ4_NL, which is not read"),
    ("half a block", header(body=entry(kind=8)), "rows of 4 values, no multiple of Q8_0's 32"),
    (
        "the same name",
        header(tensors=2, body=entry() + entry(offset=32)) + bytes(99),
        "key 'a' is there twice",
    ),
    (
        "overlap",
        header(tensors=2, body=entry() + entry(b"b", offset=8)) + bytes(99),
        "key 'b' overlaps another tensor",
    ),
]


@pytest.mark.parametrize(
    ("content", "message"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE]
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(file)
    assert message in caught.value.message
    assert str(file) in caught.value.message


def test_scales_that_are_no_numbers_are_found_when_they_are_read(tmp_path: Path) -> None:
    raw = random_blocks("Q8_0")
    raw[0, :2] = np.array([np.nan], dtype=np.float16).view(np.uint8)
    source = GgufSource.open(write_gguf(tmp_path / "x", {"a": (raw, "Q8_0")}))
    with pytest.raises(CheckpointError, match="key 'a' holds Q8_0 scales that are no numbers"):
        source.read("a")


@pytest.mark.parametrize("cut", [lambda size: size // 2, lambda size: size - 1])
def test_a_truncated_file_is_refused(every_type: Path, cut: Callable[[int], int]) -> None:
    content = every_type.read_bytes()
    every_type.write_bytes(content[: cut(len(content)) - 31])
    with pytest.raises(CheckpointError, match="truncated at key"):
        GgufSource.open(every_type)


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    values = {"a.weight": (np.zeros((2, 32), dtype=np.float32), "F32")}
    file = write_gguf(tmp_path / "part", values, numbers={"split.count": 2, "split.no": 0})
    with pytest.raises(CheckpointError, match="is one of the 2 parts of a GGUF file") as caught:
        GgufSource.open(file)
    assert "--merge" in caught.value.hint
