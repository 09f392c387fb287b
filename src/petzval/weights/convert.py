"""One format into another, tensor by tensor: published folders, ComfyUI's single files, GGUF.

    folder       config.json and safetensors, as published; of a whole checkpoint or one component
    comfyui      one safetensors file; of the denoiser, or the autoencoder under original names
    comfyui-fp8  the same with the blocks' matrices in scaled 8-bit floats; of the denoiser
    gguf-q8_0    one GGUF file with the blocks' matrices in Q8_0; of the denoiser

Plain numbers keep their type unless another is asked for; what was quantised becomes bfloat16.
Whatever is written carries its settings, so that it can be read without its folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from petzval.errors import CheckpointError, RequestError
from petzval.kernels.fp8 import encode_scaled_fp8
from petzval.models.gpt_oss import GptOssConfig
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.comfy_quant import MARK
from petzval.weights.component import SETTINGS_KEY, OpenComponent
from petzval.weights.formats import KINDS, TARGETS, Kind, Target
from petzval.weights.gguf_writing import write_gguf
from petzval.weights.key_tables import VAE_ORIGINAL, VAE_POINTWISE
from petzval.weights.manifest import expected_tensors
from petzval.weights.published import published_json
from petzval.weights.source import Source, packing_of
from petzval.weights.tokenizer_files import published_tokenizer
from petzval.weights.writing import (
    Component,
    not_written,
    save_checkpoint,
    save_component,
    write_safetensors,
)

Progress = Callable[[int, int], object]
"""Called with the tensors written so far and the number of all."""

MATRICES = ("img_qkv", "txt_qkv", "to_out.0", "to_add_out", "w1", "w2", "w3")
"""Layers of a block that 8-bit floats are used for. Modulation, norms and everything outside the
blocks keep their type: rounding them costs more than their bytes save."""

_MODULATION = ("img_mod.1", "txt_mod.1")
_STATISTICS = ("bn.running_mean", "bn.running_var")


def convert_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    extra_files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a whole checkpoint as a published folder.

    Args:
        checkpoint: its encoder must not be packed in NVFP4, which the layout does not have.
        out: the folder.
        dtype: of floating-point tensors; None keeps what is stored.
        extra_files: further text files by relative name.
        overwrite: replace what is there.
        progress: told of every tensor.

    Raises:
        CheckpointError: something is there already, or cannot be read or written.
    """
    parts = [component_of(checkpoint, kind) for kind in KINDS]
    for part in parts:
        _refuse_swallowing(out, part.source, None if checkpoint.assembled else checkpoint.folder)
    tick = _counter(progress, sum(len(part.source) for part in parts))
    components = [_published(part, dtype, tick) for part in parts]
    tokenizer = _tokenizer(checkpoint)
    save_checkpoint(out, components, tokenizer, extra_files=extra_files, overwrite=overwrite)


def convert_component(
    component: OpenComponent,
    out: Path,
    target: Target,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write one component.

    Args:
        component: open and checked.
        out: a folder, or a file for the single-file formats.
        target: see the top of this file.
        dtype: of floating-point tensors that the format does not quantise; None keeps them.
        overwrite: replace what is there.
        progress: told of every tensor.

    Raises:
        RequestError: this component has no such format.
        CheckpointError: something is there already, or cannot be read or written.
        MissingExtraError: GGUF without the package gguf.
    """
    if target == "folder":
        _refuse_swallowing(out, component.source, component.source.files[0].parent)
        written = _published(component, dtype, _counter(progress, len(component.source)))
        save_component(out, written, tokenizer=component.tokenizer, overwrite=overwrite)
        return
    check_target(component.kind, target)
    check_free(out, overwrite=overwrite)
    settings = json.dumps(published_json(component.config), separators=(",", ":"))
    state, read = _stored(component.source, dtype)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if target == "gguf-q8_0":
            names = {key for key in state if _is_matrix(key, (*MATRICES, *_MODULATION))}
            tick = _counter(progress, len(state))
            write_gguf(out, state, _ticking(read, tick), names, {SETTINGS_KEY: settings})
            return
        if component.kind == "vae":
            state, read = _original_names(state, read)
        elif target == "comfyui-fp8":
            state, read = _scaled(state, read)
        tick = _counter(progress, len(state))
        write_safetensors(out, state, {SETTINGS_KEY: settings}, read=_ticking(read, tick))
    except OSError as error:
        raise not_written(out, error, "place") from error
    finally:
        component.source.close()


def check_target(kind: Kind, target: Target) -> None:
    """Refuse a format that a component does not have.

    Raises:
        RequestError: naming both.
    """
    formats: Mapping[Kind, tuple[Target, ...]] = {
        "denoiser": TARGETS,
        "encoder": ("folder",),
        "vae": ("folder", "comfyui"),
    }
    if target not in formats[kind]:
        raise RequestError(
            f"the {kind} is not written as {target}", f"it can be: {', '.join(formats[kind])}"
        )


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse to write a file where something is.

    Raises:
        CheckpointError: it is a folder or a device, or a file and `overwrite` is False.
    """
    if out.is_dir():
        raise CheckpointError(f"{out}: is a folder, expected the name of a file")
    if out.exists() and not out.is_file():  # a rename would put a file in the device's place
        raise CheckpointError(f"{out}: is a device, expected the name of a file")
    if out.exists() and not overwrite:
        raise CheckpointError(
            f"{out}: already exists; nothing was written", "choose another place, or --overwrite"
        )


def _tokenizer(checkpoint: Checkpoint) -> Path | Mapping[str, bytes]:
    """A checkpoint's own folder; of one put together what belongs there: weights may lie beside."""
    if not checkpoint.assembled and isinstance(checkpoint.tokenizer, Path):
        return checkpoint.tokenizer
    inside = isinstance(checkpoint.tokenizer, bytes)
    home = None if inside else checkpoint.tokenizer_folder
    return published_tokenizer(checkpoint.tokenizer_json, home)


def _refuse_swallowing(out: Path, source: Source, own: Path | None) -> None:
    """Refuse a folder that is more than the one that is converted, and would be replaced whole."""
    place = out.resolve()
    if own is not None and place == own.resolve():
        return
    for file in source.files:
        if file.resolve().is_relative_to(place):
            raise CheckpointError(
                f"{out}: holds {file.name}, which is read; nothing was written",
                "choose another place: a folder is replaced whole",
            )


def component_of(checkpoint: Checkpoint, kind: Kind) -> OpenComponent:
    """One component of a checkpoint that is open."""
    config, source = {
        "denoiser": (checkpoint.denoiser_config, checkpoint.denoiser_source),
        "encoder": (checkpoint.encoder_config, checkpoint.encoder_source),
        "vae": (checkpoint.vae_config, checkpoint.vae_source),
    }[kind]
    return OpenComponent(kind=kind, path=checkpoint.folder, config=config, source=source)


def _published(
    component: OpenComponent, dtype: torch.dtype | None, tick: Callable[[], None]
) -> Component:
    config = component.config
    if isinstance(config, GptOssConfig) and config.packed_experts and config.packing != "mxfp4":
        raise CheckpointError(
            f"{component.path}: NVFP4 experts have no place in the published layout",
            "open the encoder with its experts decoded",
        )
    state, read = _stored(component.source, dtype)
    order = [key for key in expected_tensors(config) if key in state]
    return Component(
        config=config, state={key: state[key] for key in order}, read=_ticking(read, tick)
    )


def _stored(
    source: Source, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], Callable[[str], Tensor]]:
    """Shapes and types as they will be written, and what reads the numbers."""
    types = {key: _written_type(source, key, dtype) for key in source}
    state = {
        key: torch.empty(info.shape, dtype=types[key], device="meta")
        for key, info in source.infos.items()
    }
    return state, lambda key: source.read(key, types[key])


def _written_type(source: Source, key: str, dtype: torch.dtype | None) -> torch.dtype:
    info = source.infos[key]
    stored = info.torch_dtype
    if not stored.is_floating_point or key in _STATISTICS:
        return stored
    if dtype is not None:
        return dtype
    quantised = packing_of(info) != "" or stored.itemsize == 1
    return torch.bfloat16 if quantised else stored


def _is_matrix(key: str, layers: tuple[str, ...]) -> bool:
    return key.startswith("transformer_blocks.") and key.endswith(
        tuple(f".{layer}.weight" for layer in layers)
    )


def _scaled(
    state: Mapping[str, Tensor], read: Callable[[str], Tensor]
) -> tuple[dict[str, Tensor], Callable[[str], Tensor]]:
    """The blocks' matrices in scaled 8-bit floats, as ComfyUI's own files have them."""
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    changed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not _is_matrix(key, MATRICES):
            changed[key] = tensor
            continue
        layer = key.removesuffix(".weight")
        changed[key] = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn, device="meta")
        changed[f"{layer}.weight_scale"] = torch.empty((), dtype=torch.float32, device="meta")
        changed[f"{layer}.{MARK}"] = torch.empty(mark.shape, dtype=torch.uint8, device="meta")

    def read_changed(key: str) -> Tensor:
        if key.endswith(f".{MARK}"):
            return mark
        if key.endswith(".weight_scale"):
            return _encoded(read(f"{key.removesuffix('_scale')}"), key)[1]
        if changed[key].dtype == torch.float8_e4m3fn:
            return _encoded(read(key), key)[0]
        return read(key)

    return changed, read_changed


def _encoded(values: Tensor, key: str) -> tuple[Tensor, Tensor]:
    try:
        return encode_scaled_fp8(values.float())
    except ValueError as error:
        raise CheckpointError(f"key {key!r} cannot be written: {error}") from error


def _original_names(
    state: Mapping[str, Tensor], read: Callable[[str], Tensor]
) -> tuple[dict[str, Tensor], Callable[[str], Tensor]]:
    """An autoencoder under the names of FLUX.2's own file, its matrices 1 x 1 convolutions."""
    names: dict[str, str] = {}
    changed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = VAE_ORIGINAL.to_theirs(key)
        assert name is not None, key
        names[name] = key
        pointwise = key.endswith(VAE_POINTWISE)
        changed[name] = tensor[:, :, None, None] if pointwise else tensor

    def read_changed(name: str) -> Tensor:
        tensor = read(names[name])
        return tensor[:, :, None, None] if names[name].endswith(VAE_POINTWISE) else tensor

    return changed, read_changed


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total)

    return tick


def _ticking(read: Callable[[str], Tensor], tick: Callable[[], None]) -> Callable[[str], Tensor]:
    def read_and_tick(key: str) -> Tensor:
        tensor = read(key)
        tick()
        return tensor

    return read_and_tick
