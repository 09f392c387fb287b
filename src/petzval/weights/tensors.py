"""Tensors of one component, wherever its files put them: one file, or shards with an index.

Opening reads headers only. Numbers are mapped into memory, so that a tensor that keeps its dtype
on the CPU costs no copy, and others are converted one by one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from petzval.config import MEBIBYTE, read_json
from petzval.errors import CheckpointError, ConfigError
from petzval.weights.header import PICKLE_HINT, TensorInfo, read_header

STEMS = ("diffusion_pytorch_model", "model")
"""How the published folders name their weights: `<stem>.safetensors`, or `<stem>-00001-of-…`."""

_STEM = "|".join(STEMS)
_VARIANT = re.compile(rf"({_STEM})\.(\w+\.safetensors|safetensors\.index\.\w+\.json)", re.ASCII)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors", re.ASCII)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
REMAP_BYTES = 1 << 28
"""Converted bytes after which a file is mapped anew, to give its pages back."""
_SAMPLES, _SAMPLE_BYTES = 64, 256


class TensorSource:
    """The tensors of one component, by key; nothing is read before it is asked for.

    Attributes:
        files: the safetensors files, in order.
        infos: where each tensor lies.
    """

    def __init__(self, files: tuple[Path, ...], infos: Mapping[str, TensorInfo]) -> None:
        self.files = files
        self.infos = MappingProxyType(dict(infos))
        self._handles: dict[Path, Any] = {}
        self._converted_bytes = 0

    @classmethod
    def open(cls, path: Path) -> TensorSource:
        """Open a safetensors file, or a component's folder in the published layout.

        Raises:
            CheckpointError: nothing there, a pickle, a damaged file or index, a missing shard.
        """
        if path.is_dir():
            return cls._open_folder(path)
        return cls((path,), read_header(path))

    @classmethod
    def _open_folder(cls, folder: Path) -> TensorSource:
        for stem in STEMS:
            single = folder / f"{stem}.safetensors"
            index = folder / f"{stem}.safetensors.index.json"
            if single.exists() or single.is_symlink():
                return cls((single,), read_header(single))
            if index.exists():
                return cls._open_shards(index)
        return cls._open_variant(folder)

    @classmethod
    def _open_variant(cls, folder: Path) -> TensorSource:
        """What diffusers calls a variant: another file or index, with its name in the middle."""
        names = sorted(path.name for path in folder.iterdir() if _VARIANT.fullmatch(path.name))
        if len(names) > 1:
            raise CheckpointError(
                f"{folder}: holds {names[0]} and {names[1]}, and none without such a word",
                "name the file itself, or leave one of them there",
            )
        if not names:
            _refuse_without_weights(folder)
        if names[0].endswith(".json"):
            return cls._open_shards(folder / names[0])
        return cls((folder / names[0],), read_header(folder / names[0]))

    @classmethod
    def _open_shards(cls, index: Path) -> TensorSource:
        places = _read_index(index)
        files = tuple(sorted({index.parent / name for name in places.values()}))
        for file in files:
            if not file.exists():
                raise CheckpointError(
                    f"{file}: this shard is missing; {index.name} names it",
                    f"the component needs {len(files)} files; download the missing ones",
                )
            _refuse_outside(file, index)
        infos: dict[str, TensorInfo] = {}
        for file in files:
            for key, info in read_header(file).items():
                if places.get(key) != file.name:
                    raise CheckpointError(
                        f"{file}: key {key!r} is not where {index.name} says "
                        f"({places.get(key, 'nowhere')})",
                        "the shards and the index belong to different checkpoints",
                    )
                infos[key] = info
        for key, name in places.items():
            if key not in infos:
                raise CheckpointError(
                    f"{index.parent / name}: key {key!r} is missing; {index.name} names it"
                )
        return cls(files, infos)

    def __contains__(self, key: object) -> bool:
        return key in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(info.num_bytes for info in self.infos.values())

    def read(
        self,
        key: str,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """One tensor.

        Args:
            key: a key of `infos`.
            dtype: what floating-point tensors become; None keeps the file's. Integers are kept.
            device: where it goes. On the CPU in the file's own dtype it is a private mapping of
                the file, not a copy: the file may be deleted or replaced, but not written over.

        Raises:
            CheckpointError: the file cannot be read any more, or not onto this device.
        """
        info = self.infos[key]
        try:
            tensor = cast("Tensor", self._handle(info.file).get_tensor(key))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{info.file}: key {key!r} cannot be read ({error})") from error
        target = dtype if dtype is not None and info.torch_dtype.is_floating_point else tensor.dtype
        if target == tensor.dtype and torch.device(device).type == "cpu":
            return tensor
        converted = tensor.to(device=device, dtype=target)
        self._converted_bytes += info.num_bytes
        if self._converted_bytes >= REMAP_BYTES:
            self.close()
        return converted

    def close(self) -> None:
        """Unmap the files; tensors that were handed out stay valid."""
        self._handles.clear()
        self._converted_bytes = 0

    def digest(self) -> str:
        """SHA-256 over headers, sizes and samples of the numbers: cheap, and changes with training.

        Not a proof of equality; `file_sha256` is.
        """
        hasher = hashlib.sha256()
        for file in self.files:
            length = file.stat().st_size
            hasher.update(f"{file.name}:{length}:".encode())
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                hasher.update(opened.read(size))
                span = max(length - 8 - size - _SAMPLE_BYTES, 0)
                for i in range(_SAMPLES):
                    opened.seek(8 + size + span * i // (_SAMPLES - 1))
                    hasher.update(opened.read(_SAMPLE_BYTES))
        return hasher.hexdigest()

    def _handle(self, file: Path) -> Any:
        if file not in self._handles:
            opened: Any = safe_open(file, framework="pt", device="cpu")
            self._handles[file] = opened
        return self._handles[file]


def file_sha256(file: Path) -> str:
    """SHA-256 of a whole file, as `sha256sum` prints it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_index(index: Path) -> dict[str, str]:
    """Key → file name, each a bare name that stays in the folder."""
    try:
        content = read_json(index, limit_bytes=64 * MEBIBYTE)
    except ConfigError as error:
        raise CheckpointError(error.message, error.hint) from error
    places = (
        cast("dict[str, Any]", content).get("weight_map") if isinstance(content, dict) else None
    )
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no weight_map of keys to files")
    names = cast("dict[str, Any]", places)
    for key, name in names.items():
        if not isinstance(name, str) or not name or name != Path(name).name or "\\" in name:
            raise CheckpointError(
                f"{index}: key {key!r} points to {name!r}, which is not a file of this folder"
            )
        if not name.endswith(".safetensors"):
            hint = PICKLE_HINT if name.endswith(PICKLE_SUFFIXES) else ""
            raise CheckpointError(
                f"{index}: key {key!r} points to {name!r}, which is not safetensors", hint
            )
    return names


def _refuse_outside(file: Path, index: Path) -> None:
    """An index may not lead out of its checkpoint through a link.

    A download cache in the Hugging Face layout is one place: `snapshots/<revision>/…` holds links
    into `blobs/` beside it.
    """
    target, folder = file.resolve(), index.parent.resolve()
    allowed = [folder]
    allowed += [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    if not any(target.is_relative_to(root) for root in allowed):
        raise CheckpointError(
            f"{file}: {index.name} names it, but it is a link out of the checkpoint to {target}",
            "put the shard itself beside its index",
        )


def _refuse_without_weights(folder: Path) -> NoReturn:
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        if name.endswith(PICKLE_SUFFIXES):
            raise CheckpointError(f"{folder / name}: this is a pickle", PICKLE_HINT)
    shards = [name for name in names if _SHARD.fullmatch(name)]
    if shards:
        raise CheckpointError(
            f"{folder}: holds {shards[0]} but no index that names it",
            "download the file that ends in .safetensors.index.json as well",
        )
    files = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    if files:
        raise CheckpointError(
            f"{folder}: holds {' and '.join(files[:2])}{' and others' if len(files) > 2 else ''}, "
            f"and no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors",
            "name the file itself",
        )
    raise CheckpointError(
        f"{folder}: no safetensors weights here",
        "name a file of weights, or the folder that they lie in",
    )
