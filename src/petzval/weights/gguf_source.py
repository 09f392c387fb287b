"""Tensors of a GGUF file: mapped into memory, decoded one by one when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.ggml import BLOCK_FORMATS, decode_blocks, has_finite_scales
from petzval.weights.gguf_header import GgufTensor, Setting, read_gguf_header
from petzval.weights.source import DerivedTensor, StoredCodes

_SAMPLES, _SAMPLE_BYTES = 64, 256
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""Setting of ComfyUI's GGUF files: the shape of a tensor that was folded to fit the format."""


class GgufSource:
    """The tensors of one GGUF file, by key, as `Source` has them.

    Block formats are read as the float32 values they stand for; `read_blocks` gives their bytes.

    Attributes:
        settings: the file's own, long lists left out.
        tensors: where each tensor lies.
    """

    def __init__(
        self, file: Path, settings: Mapping[str, Setting], tensors: Mapping[str, GgufTensor]
    ) -> None:
        self.settings = settings
        self.tensors = tensors
        self._file = file
        self._mapped: np.memmap[tuple[int], np.dtype[np.uint8]] | None = None
        self.infos: Mapping[str, DerivedTensor] = MappingProxyType(
            {key: self._describe(tensor) for key, tensor in tensors.items()}
        )

    @classmethod
    def open(cls, file: Path) -> GgufSource:
        """Open a GGUF file.

        Raises:
            CheckpointError: as `read_gguf_header`; or it is one of several parts.
        """
        header = read_gguf_header(file)
        count = header.settings.get("split.count", 1)
        if isinstance(count, int) and count > 1:
            raise CheckpointError(
                f"{file}: is one of the {count} parts of a GGUF file",
                "put them together first: `llama-gguf-split --merge`",
            )
        return cls(file, header.settings, header.tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self._file,)

    def __contains__(self, key: object) -> bool:
        return key in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def read(
        self, key: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """One tensor, decoded; see `Source.read`.

        Raises:
            CheckpointError: the file cannot be read any more, or a scale in it is no number.
        """
        return self.infos[key].load().to(device=device, dtype=dtype)

    def read_blocks(self, key: str) -> Tensor:
        """The bytes of a tensor in a block format: uint8 […, blocks of a row, bytes of a block]."""
        tensor = self.tensors[key]
        form = BLOCK_FORMATS[tensor.kind]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // form.num_values, form.num_bytes)
        return self._bytes(tensor).reshape(shape)

    def close(self) -> None:
        """Unmap the file; tensors that were handed out stay valid."""
        self._mapped = None

    def digest(self) -> str:
        """SHA-256 over the header, the length and samples of the numbers."""
        length = self._file.stat().st_size
        start = min((tensor.start for tensor in self.tensors.values()), default=length)
        hasher = hashlib.sha256(f"{self._file.name}:{length}:".encode())
        with self._file.open("rb") as opened:
            hasher.update(opened.read(start))
            span = max(length - start - _SAMPLE_BYTES, 0)
            for i in range(_SAMPLES):
                opened.seek(start + span * i // (_SAMPLES - 1))
                hasher.update(opened.read(_SAMPLE_BYTES))
        return hasher.hexdigest()

    def _describe(self, tensor: GgufTensor) -> DerivedTensor:
        return DerivedTensor(
            key=tensor.key,
            file=tensor.file,
            shape=self._shape(tensor),
            dtype=tensor.dtype,
            num_bytes=tensor.num_bytes,
            load=lambda: self._decode(tensor),
            packing=tensor.kind if tensor.kind in BLOCK_FORMATS else "",
            codes=self._codes(tensor),
        )

    def _codes(self, tensor: GgufTensor) -> tuple[StoredCodes, ...]:
        """The rows of blocks of a matrix, their scales checked when they are read."""
        shape = self._shape(tensor)
        if tensor.kind not in BLOCK_FORMATS or len(shape) != 2 or len(tensor.shape) != 2:
            return ()
        rows = tensor.shape[0]

        def load() -> Tensor:
            raw = self._bytes(tensor).reshape(rows, -1)
            if not has_finite_scales(raw, BLOCK_FORMATS[tensor.kind]):
                raise self._no_numbers(tensor)
            return raw

        blocks = DerivedTensor(
            key="blocks",
            file=tensor.file,
            shape=(rows, tensor.num_bytes // rows),
            dtype="U8",
            num_bytes=tensor.num_bytes,
            load=load,
        )
        return (StoredCodes.of(tensor.kind, shape, [blocks]),)

    def _shape(self, tensor: GgufTensor) -> tuple[int, ...]:
        given = self.settings.get(_ORIGINAL_SHAPE + tensor.key)
        if not isinstance(given, tuple):
            return tensor.shape
        sizes = tuple(size for size in given if type(size) is int and size > 0)
        if len(sizes) != len(given) or np.prod(sizes, dtype=object) != np.prod(
            tensor.shape, dtype=object
        ):
            raise CheckpointError(
                f"{self._file}: key {tensor.key!r} has shape {list(tensor.shape)}, which cannot be "
                f"{list(given)}",
                "download or copy the file again",
            )
        return sizes

    def _decode(self, tensor: GgufTensor) -> Tensor:
        raw = self._bytes(tensor)
        if tensor.kind in _DTYPES:
            return raw.view(_DTYPES[tensor.kind]).reshape(self._shape(tensor))
        rows = raw.reshape(-1, raw.numel() // max(int(np.prod(tensor.shape[:-1])), 1))
        values = decode_blocks(rows, BLOCK_FORMATS[tensor.kind])
        if not bool(torch.isfinite(values).all()):
            raise self._no_numbers(tensor)
        return values.reshape(self._shape(tensor))

    def _no_numbers(self, tensor: GgufTensor) -> CheckpointError:
        return CheckpointError(
            f"{self._file}: key {tensor.key!r} holds {tensor.kind} scales that are no numbers",
            "download or copy the file again",
        )

    def _bytes(self, tensor: GgufTensor) -> Tensor:
        mapped = self._mapped  # another thread may close the file meanwhile
        if mapped is None:
            try:
                mapped = np.memmap(self._file, dtype=np.uint8, mode="c")
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{self._file}: cannot be read ({error})") from error
            self._mapped = mapped
        piece = mapped[tensor.start : tensor.stop]
        if len(piece) != tensor.num_bytes:
            raise CheckpointError(f"{self._file}: was cut short at key {tensor.key!r}")
        return torch.from_numpy(np.asarray(piece))
