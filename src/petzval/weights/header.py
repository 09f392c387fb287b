"""The header of one safetensors file, read and checked before any number is.

A file is eight bytes with the header's length, that much JSON, then the tensors' bytes. What is not
such a file is named for what it is: a pickle is refused, never opened.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from petzval.config import parse_json
from petzval.errors import CheckpointError, ConfigError

HEADER_LIMIT_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Safetensors' names of the types that this package can read."""

_METADATA = "__metadata__"
_LONGEST_KEY, _MOST_DIMENSIONS = 1024, 16
SAFETENSORS_HINT = "weights must be safetensors; convert the file with the program that wrote it"
PICKLE_HINT = (
    "a pickle can run any program when it is opened, so it is never read; "
    "take the safetensors version of these weights"
)
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive, most likely a PyTorch pickle", PICKLE_HINT),
    (b"\x80\x02", "a pickle", PICKLE_HINT),
    (b"\x80\x03", "a pickle", PICKLE_HINT),
    (b"\x80\x04", "a pickle", PICKLE_HINT),
    (b"\x80\x05", "a pickle", PICKLE_HINT),
    (b"GGUF", "a GGUF file", SAFETENSORS_HINT),
    (b"\x93NUMPY", "a NumPy array", SAFETENSORS_HINT),
    (b"\x89HDF", "an HDF5 file", SAFETENSORS_HINT),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights", "run `git lfs pull`"),
    (b"\x89PNG", "a picture", "give a file of weights"),
    (b"\xff\xd8\xff", "a picture", "give a file of weights"),
    (b"<!DOCTYPE", "a web page, most likely a failed download", "download the file again"),
    (b"<html", "a web page, most likely a failed download", "download the file again"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        dtype: safetensors' name of the type, a key of `DTYPES`.
        start, stop: bytes counted from the beginning of the file.
    """

    key: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch names it."""
        return DTYPES[self.dtype]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Length in the file."""
        return self.stop - self.start


def read_header(file: Path) -> dict[str, TensorInfo]:
    """All tensors of one file, by key.

    Raises:
        CheckpointError: naming the file, and the key where there is one: absent, a folder, another
            kind of file, a damaged header, an unknown dtype, offsets that overlap, leave gaps or
            run over the end (a truncated file).
    """
    header, length = _header_bytes(file)
    named = _parse(file, header)
    named.pop(_METADATA, None)
    infos = [_entry(file, 8 + len(header), key, entry) for key, entry in named.items()]
    _check_layout(file, 8 + len(header), length, infos)
    return {info.key: info for info in infos}


def read_metadata(file: Path) -> dict[str, str]:
    """The texts that a file's header carries beside its tensors; empty where there are none.

    Raises:
        CheckpointError: as `read_header`; or the texts are not texts.
    """
    header, _ = _header_bytes(file)
    metadata: Any = _parse(file, header).get(_METADATA, {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{file}: the header's metadata is not an object", SAFETENSORS_HINT)
    texts = cast("dict[str, Any]", metadata)
    for name, text in texts.items():
        if not isinstance(text, str):
            raise CheckpointError(f"{file}: metadata {name[:80]!r} is not a text", SAFETENSORS_HINT)
    return cast("dict[str, str]", texts)


def _parse(file: Path, header: bytes) -> dict[str, Any]:
    """The JSON of a header."""
    try:
        entries = parse_json(header.decode("utf-8"), where=f"{file}: the header is damaged")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{file}: the header is damaged: not UTF-8 text", "download or copy the file again"
        ) from error
    except ConfigError as error:
        raise CheckpointError(error.message, "download or copy the file again") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: the header is not an object", SAFETENSORS_HINT)
    return cast("dict[str, Any]", entries)


def _header_bytes(file: Path) -> tuple[bytes, int]:
    """The JSON part, and the length of the whole file."""
    if not file.is_file():
        kind = "is no file" if file.exists() else "does not exist"
        kind = "is a folder" if file.is_dir() else kind
        raise CheckpointError(f"{file}: {kind}; expected a safetensors file")
    try:
        with file.open("rb") as opened:
            length = os.fstat(opened.fileno()).st_size
            start = opened.read(32)
            _refuse_other_kinds(file, start)
            size = int.from_bytes(start[:8], "little")
            if length < 8 or size > length - 8:
                raise CheckpointError(
                    f"{file}: truncated in the header or not safetensors "
                    f"({length:,} bytes; the header alone should take {size:,})",
                    "download or copy the file again",
                )
            if size > HEADER_LIMIT_BYTES:
                raise CheckpointError(
                    f"{file}: the header claims {size:,} bytes; "
                    f"the limit is {HEADER_LIMIT_BYTES:,}",
                    SAFETENSORS_HINT,
                )
            opened.seek(8)
            return opened.read(size), length
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def _refuse_other_kinds(file: Path, start: bytes) -> None:
    if not start:
        raise CheckpointError(f"{file}: the file is empty", "download or copy the file again")
    for signature, kind, hint in _SIGNATURES:
        if start.startswith(signature) and start[8:9] != b"{":
            raise CheckpointError(f"{file}: this is {kind}", hint)


def _entry(file: Path, base: int, key: str, entry: Any) -> TensorInfo:
    """One header entry, checked by itself."""
    if len(key) > _LONGEST_KEY:
        raise CheckpointError(f"{file}: a key has {len(key):,} characters; the file is damaged")
    place = f"{file}: key {key!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{place}: its header entry is not an object")
    values = cast("dict[str, Any]", entry)
    dtype: Any = values.get("dtype")
    shape: Any = values.get("shape")
    offsets: Any = values.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{place}: dtype {dtype!r:.80} is unknown", f"known dtypes: {', '.join(DTYPES)}"
        )
    if not _are_sizes(shape):
        raise CheckpointError(f"{place}: shape {shape!r:.200} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{place}: data_offsets {offsets!r:.200} are not two byte positions")
    if len(shape) > _MOST_DIMENSIONS:
        raise CheckpointError(f"{place}: has {len(shape):,} dimensions; the file is damaged")
    sizes: tuple[int, ...] = tuple(shape)
    start, stop = int(offsets[0]), int(offsets[1])
    expected = math.prod(sizes) * DTYPES[dtype].itemsize
    if stop - start != expected:
        raise CheckpointError(
            f"{place}: {list(sizes)} of {dtype} takes {expected:,} bytes, "
            f"but its offsets span {stop - start:,}"
        )
    return TensorInfo(
        key=key, file=file, shape=sizes, dtype=dtype, start=base + start, stop=base + stop
    )


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    items = cast("list[Any]", value)
    return all(type(item) is int and 0 <= item < 1 << 60 for item in items)


def _check_layout(file: Path, base: int, length: int, infos: list[TensorInfo]) -> None:
    """The tensors fill the file from the header to the end, without gap or overlap."""
    position = base
    for info in sorted(infos, key=lambda info: (info.start, info.stop)):
        if info.start != position:
            fault = "overlaps another tensor" if info.start < position else "leaves a gap before it"
            raise CheckpointError(f"{file}: key {info.key!r} {fault}; the file is damaged")
        position = info.stop
        if position > length:
            raise CheckpointError(
                f"{file}: truncated at key {info.key!r} "
                f"({length:,} bytes; the header promises at least {position:,})",
                "download or copy the file again",
            )
    if position != length:
        raise CheckpointError(
            f"{file}: {length - position:,} bytes more than the header accounts for; "
            "the file is damaged",
            "download or copy the file again",
        )
