"""The header of a GGUF file: its settings and where its tensors lie, before a number is read.

Little-endian, version 2 or 3: magic, counts, settings (name, type, value), tensors (name, sizes,
type, offset), then the data, aligned. The file is walked by hand and not with the library that
writes it, because anybody may have made it: every length is compared with what is left of the file
before it is believed.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from petzval.errors import CheckpointError
from petzval.kernels.ggml import BLOCK_FORMATS

MAGIC = b"GGUF"
_DAMAGED = "download or copy the file again"
_MOST_NAMES, _MOST_DIMENSIONS, _LONGEST_NAME = 1_000_000, 4, 1024
_LONGEST_KEPT = 16
"""Lists longer than this are walked over and not kept: vocabularies, merges."""

_SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_TEXT, _LIST = 8, 9

_PLAIN: Mapping[int, tuple[str, int]] = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2)}
_BLOCKS: Mapping[int, str] = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    39: "MXFP4",
}  # fmt: skip
_NOT_READ: Mapping[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip
GGML_TYPES: Final = (*(name for name, _ in _PLAIN.values()), *_BLOCKS.values())
"""Names of the types of tensors that are read."""

Setting = str | int | float | bool | tuple[str | int | float | bool, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """Where one tensor lies.

    Attributes:
        shape: rows before columns, as torch has it (GGUF itself writes the reverse).
        kind: one of `GGML_TYPES`.
        start, stop: bytes counted from the beginning of the file.
    """

    key: str
    file: Path
    shape: tuple[int, ...]
    kind: str
    start: int
    stop: int

    @property
    def dtype(self) -> str:
        """What reading gives: blocks are decoded to float32."""
        return self.kind if self.kind in ("F16", "BF16") else "F32"

    @property
    def num_bytes(self) -> int:
        """Length in the file."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """A file's settings (long lists left out) and tensors by name."""

    settings: Mapping[str, Setting]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does; False for what cannot be opened."""
    try:
        with path.open("rb") as opened:
            return opened.read(4) == MAGIC
    except OSError:
        return False


def read_gguf_header(file: Path) -> GgufHeader:
    """Settings and tensors of a GGUF file.

    Raises:
        CheckpointError: naming the file, and the tensor where there is one: not GGUF, truncated,
            lengths beyond the file, two of one name, a type that is not read, overlapping tensors.
    """
    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _Walk(file, content).header()
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{file}: cannot be read as GGUF ({error})", _DAMAGED) from error


class _Walk:
    """A position in the file that never passes its end."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self.file, self.content, self.position = file, content, 0

    def header(self) -> GgufHeader:
        """The whole header, from the first byte."""
        if self.take(4) != MAGIC:
            raise CheckpointError(f"{self.file}: this is no GGUF file", _DAMAGED)
        version = self.number("<I")
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.file}: GGUF version {version} is not read", "versions 2 and 3 are"
            )
        num_tensors, num_settings = self.number("<Q"), self.number("<Q")
        for what, count in (("tensors", num_tensors), ("settings", num_settings)):
            if count > _MOST_NAMES:
                raise CheckpointError(f"{self.file}: claims {count:,} {what}", _DAMAGED)
        settings: dict[str, Setting] = {}
        for _ in range(num_settings):
            name, value = self.text(), self.value(self.number("<I"))
            if name in settings:
                raise CheckpointError(f"{self.file}: setting {name!r} is there twice", _DAMAGED)
            if value is not None:
                settings[name] = value
        entries = [self.entry() for _ in range(num_tensors)]
        return GgufHeader(settings=settings, tensors=self.lay_out(settings, entries))

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if size > len(self.content) - self.position:
            raise CheckpointError(
                f"{self.file}: truncated in the header ({len(self.content):,} bytes; "
                f"{size:,} more expected at {self.position:,})",
                _DAMAGED,
            )
        self.position += size
        return self.content[self.position - size : self.position]

    def number(self, form: str) -> int:
        """The next whole number."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def text(self) -> str:
        """The next name."""
        size = self.number("<Q")
        if size > _LONGEST_NAME:
            raise CheckpointError(f"{self.file}: a name claims {size:,} bytes", _DAMAGED)
        return self.take(size).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Setting | None:
        """The next setting's value; None for a list that is too long to keep."""
        if kind in _SCALARS:
            (value,) = struct.unpack(_SCALARS[kind], self.take(struct.calcsize(_SCALARS[kind])))
            return value
        if kind == _TEXT:
            return self.take(self.number("<Q")).decode("utf-8", errors="replace")
        if kind != _LIST:
            raise CheckpointError(f"{self.file}: a setting has the unknown type {kind}", _DAMAGED)
        item, count = self.number("<I"), self.number("<Q")
        if item not in _SCALARS and item != _TEXT:
            raise CheckpointError(f"{self.file}: a list has the unknown type {item}", _DAMAGED)
        if item in _SCALARS and count > _LONGEST_KEPT:
            self.take(count * struct.calcsize(_SCALARS[item]))
            return None
        kept: list[str | int | float | bool] = []
        for _ in range(count):  # each text takes eight bytes or ends the walk
            one = self.value(item)
            if count <= _LONGEST_KEPT and one is not None and not isinstance(one, tuple):
                kept.append(one)
        return tuple(kept) if count <= _LONGEST_KEPT else None

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """The next tensor: name, shape, type, offset."""
        name, num_dimensions = self.text(), self.number("<I")
        if num_dimensions > _MOST_DIMENSIONS:
            raise CheckpointError(
                f"{self.file}: key {name!r} has {num_dimensions:,} dimensions", _DAMAGED
            )
        sizes = [self.number("<Q") for _ in range(num_dimensions)]
        return name, tuple(reversed(sizes)), self.number("<I"), self.number("<Q")

    def lay_out(
        self, settings: Mapping[str, Setting], entries: list[tuple[str, tuple[int, ...], int, int]]
    ) -> dict[str, GgufTensor]:
        """Tensors with their place, which must be theirs alone and inside the file."""
        alignment = settings.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise CheckpointError(f"{self.file}: the alignment is {alignment!r}", _DAMAGED)
        base = -(-self.position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise CheckpointError(f"{self.file}: key {name!r} is there twice", _DAMAGED)
            size = self.size(name, shape, kind)
            stop = base + offset + size
            if stop > len(self.content):
                raise CheckpointError(
                    f"{self.file}: truncated at key {name!r} ({len(self.content):,} bytes; "
                    f"the header promises at least {stop:,})",
                    _DAMAGED,
                )
            tensors[name] = GgufTensor(
                key=name,
                file=self.file,
                shape=shape,
                kind=_PLAIN[kind][0] if kind in _PLAIN else _BLOCKS[kind],
                start=base + offset,
                stop=stop,
            )
        end = base
        for tensor in sorted(tensors.values(), key=lambda one: (one.start, one.stop)):
            if tensor.start < end:
                raise CheckpointError(
                    f"{self.file}: key {tensor.key!r} overlaps another tensor", _DAMAGED
                )
            end = tensor.stop
        return tensors

    def size(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        """Bytes of a tensor of this shape and type."""
        if kind in _PLAIN:
            return math.prod(shape) * _PLAIN[kind][1]
        if kind not in _BLOCKS:
            raise CheckpointError(
                f"{self.file}: key {name!r} is stored as {_NOT_READ.get(kind, f'type {kind}')}, "
                "which is not read",
                f"types that are: {', '.join(GGML_TYPES)}",
            )
        form = BLOCK_FORMATS[_BLOCKS[kind]]
        columns = shape[-1] if shape else 0
        if not columns or columns % form.num_values:
            raise CheckpointError(
                f"{self.file}: key {name!r} has rows of {columns:,} values, no multiple of "
                f"{form.name}'s {form.num_values}",
                _DAMAGED,
            )
        return math.prod(shape) // form.num_values * form.num_bytes
