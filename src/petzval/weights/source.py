"""What a component's tensors look like from outside, whatever files and formats they lie in.

A `Source` knows every tensor's name, shape and type without reading a number, and reads one when it
is asked for. Formats differ in names and in how numbers are packed; `DerivedSource` is a view of
another source with both translated, tensor by tensor, still without reading any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.matrix_codes import MatrixCodes
from petzval.weights.header import DTYPES
from petzval.weights.tensors import REMAP_BYTES

FLOAT8: Mapping[str, str] = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""Safetensors' names of 8-bit floats → the names of their formats."""


@runtime_checkable
class TensorDescription(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def key(self) -> str:
        """Its name in the source."""
        ...

    @property
    def file(self) -> Path:
        """Where it lies; the first of several where it is put together."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is read."""
        ...

    @property
    def dtype(self) -> str:
        """Safetensors' name of the type that `read` gives where none is asked for."""
        ...

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same as torch names it."""
        ...

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        ...

    @property
    def num_bytes(self) -> int:
        """What it takes in its file."""
        ...


@runtime_checkable
class Source(Protocol):
    """The tensors of one component, by key."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read from, in order."""
        ...

    @property
    def infos(self) -> Mapping[str, TensorDescription]:
        """Key → what is known before reading."""
        ...

    def __contains__(self, key: object) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def __len__(self) -> int: ...

    def read(
        self, key: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """One tensor; floating-point ones become `dtype`, others keep their type."""
        ...

    def close(self) -> None:
        """Let go of the files; tensors that were handed out stay valid."""
        ...

    def digest(self) -> str:
        """SHA-256 over headers, sizes and samples of the numbers: cheap, no proof of equality."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DerivedTensor:
    """A tensor that is made of what lies in a file.

    Attributes:
        dtype: what `load` gives.
        num_bytes: of all that it is made of, as stored.
        load: reads and makes it, on the CPU.
        packing: name of the quantised format it was stored in; "" for plain numbers.
        codes: what a matrix is decoded from, where it can be kept so: pieces one below the other.
    """

    key: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    load: Callable[[], Tensor]
    packing: str = ""
    codes: tuple[StoredCodes, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch names it."""
        return DTYPES[self.dtype]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredCodes:
    """A matrix as its file has it.

    Attributes:
        form: what is stored, and how it is decoded.
        tensors: what is stored; keys are the names of the form's parts.
    """

    form: MatrixCodes
    tensors: tuple[DerivedTensor, ...]

    @classmethod
    def of(cls, kind: str, shape: Sequence[int], tensors: Sequence[DerivedTensor]) -> StoredCodes:
        """Of a matrix in a format of `kernels.matrix_codes`."""
        rows, columns = shape
        parts = tuple((each.key, each.shape, each.torch_dtype) for each in tensors)
        form = MatrixCodes(kind=kind, shape=(rows, columns), parts=parts)
        return cls(form=form, tensors=tuple(tensors))


class DerivedSource:
    """A view of another source: other names, other shapes, numbers unpacked; nothing read yet.

    Args:
        base: whose files are read, closed and hashed.
        tensors: what the view holds.

    Attributes:
        infos: by key.

    Raises:
        CheckpointError: two tensors have one name.
    """

    def __init__(self, base: Source, tensors: Iterable[DerivedTensor]) -> None:
        self.base = base
        infos: dict[str, DerivedTensor] = {}
        for tensor in tensors:
            if tensor.key in infos:
                raise CheckpointError(
                    f"{tensor.file}: key {tensor.key!r} is there twice, under two names",
                    "keep one of them; the file was put together from two",
                )
            infos[tensor.key] = tensor
        self.infos: Mapping[str, DerivedTensor] = MappingProxyType(infos)
        self._read_bytes = 0

    @property
    def files(self) -> tuple[Path, ...]:
        """The base's files."""
        return self.base.files

    def __contains__(self, key: object) -> bool:
        return key in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def read(
        self, key: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """One tensor, made anew at every call; see `Source.read`.

        Raises:
            CheckpointError: the file cannot be read any more, or its scales are no numbers.
        """
        info = self.infos[key]
        tensor = info.load()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        tensor = tensor.to(device)
        self._read_bytes += info.num_bytes
        if self._read_bytes >= REMAP_BYTES:
            self.close()  # gives back the pages of what was read and unpacked
        return tensor

    def close(self) -> None:
        """Let go of the files."""
        self._read_bytes = 0
        self.base.close()

    def digest(self) -> str:
        """The base's: the files decide."""
        return self.base.digest()


def derived(source: Source, key: str, name: str | None = None) -> DerivedTensor:
    """A tensor of a source as it is, under the same name or another."""
    info = source.infos[key]
    return DerivedTensor(
        key=name or key,
        file=info.file,
        shape=info.shape,
        dtype=info.dtype,
        num_bytes=info.num_bytes,
        load=lambda: source.read(key),
        packing=packing_of(info),
        codes=info.codes if isinstance(info, DerivedTensor) else (),
    )


def changed(
    source: Source,
    tensor: DerivedTensor,
    key: str,
    shape: tuple[int, ...],
    change: Callable[[Tensor], Tensor],
) -> DerivedTensor:
    """The same tensor with something done to it after it is read."""
    return replace(tensor, shape=shape, load=lambda: change(source.read(key)), codes=())


def joined(
    source: Source,
    name: str,
    keys: Sequence[str],
    shape: tuple[int, ...],
    join: Callable[[list[Tensor]], Tensor],
    dtype: str | None = None,
) -> DerivedTensor:
    """One tensor out of several."""
    infos = [source.infos[key] for key in keys]
    packing = derived(source, keys[0]).packing
    return DerivedTensor(
        key=name,
        file=infos[0].file,
        shape=shape,
        dtype=dtype or infos[0].dtype,
        num_bytes=sum(info.num_bytes for info in infos),
        load=lambda: join([source.read(key) for key in keys]),
        packing=packing,
    )


def packing_of(info: TensorDescription) -> str:
    """Name of the quantised format a tensor was stored in; "" for plain numbers."""
    return info.packing if isinstance(info, DerivedTensor) else ""


def stored_codes(source: Source, key: str) -> tuple[StoredCodes, ...]:
    """What a matrix is decoded from, plain 8-bit floats as well; empty for other numbers."""
    info = source.infos[key]
    if isinstance(info, DerivedTensor) and info.codes:
        return info.codes
    if info.dtype not in FLOAT8 or len(info.shape) != 2:
        return ()
    bits = replace(
        derived(source, key, "codes"), dtype="U8", load=lambda: source.read(key).view(torch.uint8)
    )
    return (StoredCodes.of(FLOAT8[info.dtype], info.shape, [bits]),)


def packings(source: Source) -> tuple[str, ...]:
    """Every quantised format that occurs in a source, in alphabetical order."""
    return tuple(sorted({packing_of(info) for info in source.infos.values()} - {""}))


def total_bytes(source: Source) -> int:
    """Bytes of all tensors as stored, headers not counted."""
    return sum(info.num_bytes for info in source.infos.values())
