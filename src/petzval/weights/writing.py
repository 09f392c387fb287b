"""Components and checkpoints written in the published layout, all or nothing.

Everything is written beside its place under another name, flushed to the disk and then renamed: a
full disk, an interrupt or a crash leaves what was there before, and no half file.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petzval.errors import CheckpointError
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.weights.header import DTYPES
from petzval.weights.manifest import expected_tensors
from petzval.weights.published import (
    MODEL_INDEX,
    SCHEDULER,
    SCHEDULER_CONFIG,
    TOKENIZER,
    ComponentConfig,
    component_folder,
    file_stem,
    published_json,
)

MAX_SHARD_BYTES = 5 * 10**9
_ALIGNMENT = 64
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One network to be written: what it is, and its numbers by published key.

    Attributes:
        state: the numbers; or, where there is `read`, tensors on the meta device that say their
            shapes and types alone.
        read: gives the numbers of a key when they are written, so that no more than one tensor
            is held.
    """

    config: ComponentConfig
    state: Mapping[str, Tensor]
    read: Callable[[str], Tensor] | None = None

    @classmethod
    def of(
        cls, module: MMDiT | GptOssEncoder | Autoencoder, dtype: torch.dtype | None = None
    ) -> Component:
        """A network's numbers; `dtype` is what its floating-point parameters become in the file.

        Buffers (the autoencoder's token statistics) keep their own type.
        """
        parameters = {name for name, _ in module.named_parameters()}
        state = {
            key: tensor.detach().to(dtype) if dtype is not None and key in parameters else tensor
            for key, tensor in nn.Module.state_dict(module).items()
        }
        return cls(config=module.config, state=state)


def save_component(
    folder: str | Path,
    component: Component,
    *,
    tokenizer: bytes | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write one component's own folder: config.json and safetensors, in shards where too large.

    Args:
        folder: where to; its parents are made.
        component: what to write.
        tokenizer: content of a `tokenizer.json` beside the weights.
        max_shard_bytes: a larger component is split into shards with an index.
        overwrite: replace what is there.

    Raises:
        CheckpointError: the tensors are not those of the config; the folder exists and `overwrite`
            is False; the disk is full or read-only. The folder is then as it was.
    """
    _refuse_wrong_state(component)
    with _replacing(Path(folder), overwrite=overwrite) as partial:
        _write_component(partial, component, max_shard_bytes)
        if tokenizer is not None:
            (partial / "tokenizer.json").write_bytes(tokenizer)


def save_checkpoint(
    folder: str | Path,
    components: Sequence[Component],
    tokenizer: str | Path | Mapping[str, bytes],
    *,
    extra_files: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write a whole checkpoint that `Checkpoint.open` accepts.

    Args:
        folder: where to; its parents are made.
        components: denoiser, text encoder and autoencoder.
        tokenizer: a folder, whose files are copied; or the files' contents by name.
        extra_files: further text files by relative name (card, licences).
        max_shard_bytes: larger components are split into shards with an index.
        overwrite: replace what is there.

    Raises:
        CheckpointError: as `save_component`.
    """
    names = sorted(component_folder(component.config) for component in components)
    if names != ["text_encoder", "transformer", "vae"]:
        raise ValueError(f"a checkpoint has one denoiser, text encoder and vae, got {names}")
    for component in components:
        _refuse_wrong_state(component)
    with _replacing(Path(folder), overwrite=overwrite) as partial:
        for component in components:
            home = partial / component_folder(component.config)
            home.mkdir()
            _write_component(home, component, max_shard_bytes)
        _write_text(partial / "model_index.json", _json(MODEL_INDEX))
        (partial / SCHEDULER).mkdir()
        _write_text(partial / SCHEDULER / "scheduler_config.json", _json(SCHEDULER_CONFIG))
        if isinstance(tokenizer, Mapping):
            (partial / TOKENIZER).mkdir()
            for name, content in tokenizer.items():
                (partial / TOKENIZER / name).write_bytes(content)
        else:
            shutil.copytree(tokenizer, partial / TOKENIZER)
        for name, text in (extra_files or {}).items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _write_text(partial / name, text)


def save_with_denoiser(
    folder: str | Path,
    original: str | Path,
    denoiser: Component,
    extra_files: Mapping[str, str] | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a copy of a checkpoint with another denoiser; what is at `folder` is replaced.

    Args:
        folder: where to.
        original: its other networks, tokenizer, settings and licences are copied.
        denoiser: takes the place of the original's.
        extra_files: further text files by relative name; they replace the original's.
        max_shard_bytes: a larger denoiser is split.

    Raises:
        CheckpointError: as `save_component`.
    """
    _refuse_wrong_state(denoiser)
    name = component_folder(denoiser.config)
    with _replacing(Path(folder), overwrite=True) as partial:
        for path in sorted(Path(original).iterdir()):
            if path.name == name or path.name.startswith("."):
                continue
            if path.is_dir():
                shutil.copytree(path, partial / path.name)
            else:
                shutil.copy(path, partial / path.name)
        (partial / name).mkdir()
        _write_component(partial / name, denoiser, max_shard_bytes)
        for relative, text in (extra_files or {}).items():
            (partial / relative).parent.mkdir(parents=True, exist_ok=True)
            _write_text(partial / relative, text)


def write_safetensors(
    file: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """One safetensors file, tensor by tensor: no second copy of the whole is held.

    Wider types come first and the data starts at a multiple of 64 bytes, so that every tensor is
    aligned when the file is mapped. A file that is there is replaced, not written over: tensors
    may still be mapped from it, perhaps the very ones that are written.

    Args:
        file: where to.
        state: the numbers, or their shapes and types where `read` gives the numbers.
        metadata: texts for the header.
        read: see `Component.read`.
    """
    order = sorted(state, key=lambda key: (-state[key].element_size(), key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for key in order:
        tensor = state[key]
        stop = position + tensor.nbytes
        header[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with replacing_file(file) as partial, partial.open("xb") as opened:
        opened.write(len(text).to_bytes(8, "little"))
        opened.write(text)
        for key in order:
            tensor = state[key] if read is None else read(key)
            assert (tensor.dtype, tensor.shape) == (state[key].dtype, state[key].shape), key
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            opened.write(flat.view(torch.uint8).numpy().data)
        opened.flush()
        os.fsync(opened.fileno())


@contextmanager
def replacing_file(file: Path) -> Generator[Path]:
    """A place to write to, which becomes `file` only when the block ends well."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def not_written(place: Path, error: OSError, kind: str) -> CheckpointError:
    """What to tell of a folder or another `kind` of place that the system did not let us write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return CheckpointError(
        f"{place}: not written ({error.strerror or error}); what was there is unchanged",
        "make room on the disk" if full else f"choose a {kind} that can be written to",
    )


def _write_component(folder: Path, component: Component, max_shard_bytes: int) -> None:
    stem = file_stem(component.config)
    shards = _split(component.state, max_shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", shards[0], read=component.read)
    else:
        places: dict[str, str] = {}
        for i, shard in enumerate(shards, start=1):
            name = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
            write_safetensors(folder / name, shard, read=component.read)
            places |= dict.fromkeys(shard, name)
        total = sum(tensor.nbytes for tensor in component.state.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_text(folder / f"{stem}.safetensors.index.json", _json(index))
    _write_text(folder / "config.json", _json(published_json(component.config)))


def _split(state: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, a new shard whenever the next would exceed the limit."""
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for key, tensor in state.items():
        if shards[-1] and held + tensor.nbytes > max_bytes:
            shards.append({})
            held = 0
        shards[-1][key] = tensor
        held += tensor.nbytes
    return shards


def _refuse_wrong_state(component: Component) -> None:
    expected = expected_tensors(component.config)
    name = component_folder(component.config)
    for key, wanted in expected.items():
        if key not in component.state:
            if wanted.required:
                raise CheckpointError(f"{name}: key {key!r} is missing; nothing was written")
        elif tuple(component.state[key].shape) != wanted.shape:
            raise CheckpointError(
                f"{name}: key {key!r} has shape {list(component.state[key].shape)}, expected "
                f"{list(wanted.shape)}; nothing was written"
            )
    for key in component.state:
        if key not in expected:
            raise CheckpointError(f"{name}: key {key!r} is unknown; nothing was written")


@contextmanager
def _replacing(folder: Path, *, overwrite: bool) -> Generator[Path]:
    """A folder to write into, which becomes `folder` only when the block ends well."""
    if folder.exists() and not (overwrite and folder.is_dir()):
        kind = "already exists" if folder.is_dir() else "is a file"
        raise CheckpointError(f"{folder}: {kind}; nothing was written", "choose another place")
    if folder.exists() and not _is_replaceable(folder):
        raise CheckpointError(
            f"{folder}: holds other things than weights; nothing was written",
            "choose another place, or a folder that is empty",
        )
    folder = folder.resolve() if folder.name in ("", "..") else folder
    token = uuid.uuid4().hex[:8]
    partial = folder.with_name(f".{folder.name}.{token}.partial")
    old = folder.with_name(f".{folder.name}.{token}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        raise not_written(folder, error, "folder") from error
    finally:
        with suppress(OSError):
            if old.exists() and not folder.exists():
                old.rename(folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder is empty or one of weights: anything else would be lost by replacing it."""
    names = {path.name for path in folder.iterdir()}
    return not names or bool(names & {"model_index.json", "config.json"})


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
