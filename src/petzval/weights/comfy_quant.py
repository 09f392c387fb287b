"""ComfyUI's quantised layers: codes and scales side by side in a safetensors file, made one matrix.

A layer `L` keeps its codes under `L.weight` and says in `L.comfy_quant`, a JSON text as bytes, how
they are meant; or the file's metadata says it for all layers, under `_quantization_metadata`; or,
in older files, the names and types alone say it:

    float8_e4m3fn, float8_e5m2   L.weight_scale (older: L.scale_weight), one float or one a row
    int8_tensorwise              the same; with "convrot" rows were rotated, a group at a time,
                                 before they were rounded, and are rotated back
    mxfp8                        L.weight_scale, exponents in tiles, one for 32 values
    nvfp4                        L.weight_scale, E4M3 in tiles, one for 16; L.weight_scale_2

Banks of experts have one dimension more in front. Scales of activations (`input_scale`, older:
`scale_input`) and the mark `scaled_fp8` decide nothing here: weights are read, not activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from petzval.config import parse_json
from petzval.errors import CheckpointError, ConfigError
from petzval.kernels.fp8 import MXFP8_BLOCK, decode_mxfp8
from petzval.kernels.fp8 import decode_scaled_fp8 as decode_scaled
from petzval.kernels.hadamard import LARGEST_ROTATION, hadamard, is_power_of, rotate
from petzval.kernels.mxfp4 import NAN_SCALE
from petzval.kernels.nvfp4 import NVFP4_BLOCK, decode_nvfp4
from petzval.kernels.scale_tiles import tiled_shape
from petzval.weights.foreign_formats import WAY_OUT
from petzval.weights.source import (
    FLOAT8,
    DerivedSource,
    DerivedTensor,
    Source,
    StoredCodes,
    TensorDescription,
    derived,
)

MARK = "comfy_quant"
METADATA_KEY = "_quantization_metadata"
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "mxfp8", "nvfp4")
"""ComfyUI's names of the formats that are read."""

FILE_MARKS = ("scaled_fp8",)
"""Tensors that say something of the whole file and belong to no layer."""

_SCALE_NAMES = {"scale_weight": "weight_scale", "weight_scale": "weight_scale"}
_IGNORED = ("input_scale", "scale_input")
_COMPANIONS = (MARK, *_SCALE_NAMES, "weight_scale_2", *_IGNORED)
_MARK_LIMIT = 1 << 16
_DAMAGED = "download or convert the file again"
_KNOWN_SETTINGS = {"format", "full_precision_matrix_mult", "num_experts"}
_INT8 = "int8_tensorwise"
_ROTATION = {"convrot", "convrot_groupsize"}
_ROTATED_TOGETHER = 256
_ONE_SCALE = (*FLOAT8.values(), _INT8)
"""Formats with one scale for a matrix, or one for each row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisedLayer:
    """The tensors of one layer.

    Attributes:
        name: of the layer, without `.weight`.
        kind: one of `FORMATS`.
        codes: key of the weight.
        scale: key of its scale; None for plain 8-bit floats.
        factor: key of NVFP4's second scale.
        rotation: columns that were rotated together; 0 for none.
    """

    name: str
    kind: str
    codes: str
    scale: str | None
    factor: str | None
    rotation: int = 0


def unpacked(
    source: Source, metadata: Mapping[str, str] | None = None, *, without: Collection[str] = ()
) -> Source:
    """The same tensors with quantised layers as the float32 matrices they stand for.

    Args:
        source: a safetensors file, names as in the file or without their prefix.
        metadata: of the file's header.
        without: layers that are left out altogether.

    Raises:
        CheckpointError: naming file and key: a format that is not read, a scale without its weight,
            a missing scale, a wrong shape or type.
    """
    layers = quantised_layers(source, metadata or {})
    if not layers and not any(key in source for key in FILE_MARKS):
        return source
    taken = {key for layer in layers for key in _keys_of(source, layer.name)}
    taken |= {key for key in source if key in FILE_MARKS}
    tensors = [derived(source, key) for key in source if key not in taken]
    matrices = [_matrix(source, layer) for layer in layers if layer.name not in without]
    return DerivedSource(source, tensors + matrices)


def quantised_layers(source: Source, metadata: Mapping[str, str]) -> list[QuantisedLayer]:
    """Every layer that is quantised; see `unpacked`.

    Raises:
        CheckpointError: as `unpacked`.
    """
    stated = _stated_formats(source, metadata)
    names = {key.rpartition(".")[0] for key in source if key.rpartition(".")[2] in _COMPANIONS}
    names |= {name for name in stated if f"{name}.weight" in source}
    return [_layer(source, name, stated.get(name)) for name in sorted(names)]


def check_scales(key: str, info: TensorDescription, scales: Tensor) -> None:
    """Refuse scales that are no numbers; exponents are bytes, of which 255 stands for NaN.

    Raises:
        CheckpointError: naming file and key.
    """
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        wrong = bool((scales.view(torch.uint8) == NAN_SCALE).any())
    else:
        wrong = not bool(torch.isfinite(scales.float()).all())
    if wrong:
        raise CheckpointError(
            f"{info.file}: key {key!r} holds scales that are no numbers", _DAMAGED
        )


def _keys_of(source: Source, layer: str) -> list[str]:
    return [key for name in ("weight", *_COMPANIONS) if (key := f"{layer}.{name}") in source]


def _stated_formats(source: Source, metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Layer → what the file says of it, by its mark or by the header's metadata."""
    stated: dict[str, Mapping[str, Any]] = {}
    file = source.files[0]
    if METADATA_KEY in metadata:
        where = f"{file}: metadata {METADATA_KEY!r}"
        table = _json(metadata[METADATA_KEY], where).get("layers")
        if not isinstance(table, dict):
            raise CheckpointError(f"{where} has no layers", _DAMAGED)
        for name, said in cast("dict[str, Any]", table).items():
            if isinstance(said, dict):
                stated[_present(source, name)] = cast("dict[str, Any]", said)
    for key, info in source.infos.items():
        if not key.endswith(f".{MARK}"):
            continue
        if info.dtype != "U8" or info.num_elements > _MARK_LIMIT:
            raise CheckpointError(f"{info.file}: key {key!r} is no text in bytes", _DAMAGED)
        text = bytes(source.read(key).numpy()).decode("utf-8", errors="replace")
        stated[key.removesuffix(f".{MARK}")] = _json(text, f"{info.file}: key {key!r}")
    return stated


def _present(source: Source, name: str) -> str:
    """Names in the metadata may be written with or without the file's prefix."""
    if f"{name}.weight" in source:
        return name
    ends = [key for key in source if key.endswith(f".{name}.weight")]
    if len(ends) == 1:
        return ends[0].removesuffix(".weight")
    parts = name.split(".")
    shorter = (".".join(parts[i:]) for i in range(1, len(parts)))
    return next((each for each in shorter if f"{each}.weight" in source), name)


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = parse_json(text, where=where)
    except ConfigError as error:
        raise CheckpointError(error.message, _DAMAGED) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is no object", _DAMAGED)
    return cast("dict[str, Any]", value)


def _layer(source: Source, name: str, said: Mapping[str, Any] | None) -> QuantisedLayer:
    codes = f"{name}.weight"
    if codes not in source:
        first = next(f"{name}.{each}" for each in _COMPANIONS if f"{name}.{each}" in source)
        raise CheckpointError(
            f"{source.infos[first].file}: key {first!r} has no {codes!r} beside it", _DAMAGED
        )
    info = source.infos[codes]
    scales = [key for each in _SCALE_NAMES if (key := f"{name}.{each}") in source]
    if len(scales) > 1:
        raise CheckpointError(
            f"{info.file}: key {scales[0]!r} says the same as {scales[1]!r}", "keep one of them"
        )
    factor = f"{name}.weight_scale_2"
    layer = QuantisedLayer(
        name=name,
        kind=_kind(source, info, said, scales, factor),
        codes=codes,
        scale=scales[0] if scales else None,
        factor=factor if factor in source else None,
        rotation=_rotation(info, said or {}),
    )
    _check(source, layer)
    return layer


def _kind(
    source: Source,
    info: TensorDescription,
    said: Mapping[str, Any] | None,
    scales: list[str],
    factor: str,
) -> str:
    """The format as the file states it; else as types and names show it."""
    if said is not None:
        kind: Any = said.get("format")
        known = _KNOWN_SETTINGS | _ROTATION if kind == _INT8 else _KNOWN_SETTINGS
        odd = sorted(name for name in said if name not in known)
        if kind not in FORMATS or odd:
            what = f"with the setting {odd[0]!r}" if kind in FORMATS else f"as {kind!r:.80}"
            what += " with ConvRot" if said.get("convrot") else ""
            raise CheckpointError(
                f"{info.file}: key {info.key!r} is stored {what}, which is not read", WAY_OUT
            )
        return kind
    if info.dtype == "U8" and factor in source:
        return "nvfp4"
    if info.dtype == "F8_E4M3" and scales and source.infos[scales[0]].dtype in ("U8", "F8_E8M0"):
        return "mxfp8"
    if info.dtype in FLOAT8:
        return FLOAT8[info.dtype]
    raise CheckpointError(
        f"{info.file}: key {info.key!r} is {info.dtype} with scales beside it, a format that is "
        "not known",
        WAY_OUT,
    )


def _rotation(info: TensorDescription, said: Mapping[str, Any]) -> int:
    """The columns that were rotated together: a power of four that divides the row, or none."""
    if not said.get("convrot"):
        return 0
    size: Any = said.get("convrot_groupsize", _ROTATED_TOGETHER)
    is_size = type(size) is int and size <= LARGEST_ROTATION and is_power_of(4, size)
    if is_size and len(info.shape) == 2 and info.shape[1] % size == 0:
        return size
    raise _wrong(info, f"is {list(info.shape)}, rotated in groups of {size!r:.20}")


def _check(source: Source, layer: QuantisedLayer) -> None:
    """Types and shapes of a layer's tensors, from the headers."""
    info = source.infos[layer.codes]
    stored = {
        "nvfp4": "U8",
        "mxfp8": "F8_E4M3",
        _INT8: "I8",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
    }
    if info.dtype != stored[layer.kind]:
        raise _wrong(
            info, f"has dtype {info.dtype}, expected {stored[layer.kind]} for {layer.kind}"
        )
    if len(info.shape) not in (2, 3):
        raise _wrong(info, f"has shape {list(info.shape)}, expected a matrix or a bank of them")
    if layer.scale is None and layer.kind not in FLOAT8.values():
        raise _wrong(info, f"is {layer.kind} without {layer.name}.weight_scale")
    if layer.kind in _ONE_SCALE:
        if layer.scale is not None:
            counts = {info.shape[0]} if layer.rotation else _scale_counts(info.shape)
            _check_floats(source, layer.scale, counts)
        return
    assert layer.scale is not None
    *experts, rows, columns = info.shape
    block = MXFP8_BLOCK if layer.kind == "mxfp8" else NVFP4_BLOCK
    columns *= 1 if layer.kind == "mxfp8" else 2
    if columns % block:
        raise _wrong(info, f"has rows of {columns} values, no multiple of {layer.kind}'s {block}")
    scale = source.infos[layer.scale]
    expected = (*experts, *tiled_shape(rows, columns // block))
    allowed = ("U8", "F8_E8M0") if layer.kind == "mxfp8" else ("U8", "F8_E4M3")
    if scale.shape != expected or scale.dtype not in allowed:
        raise _wrong(
            scale,
            f"is {list(scale.shape)} of {scale.dtype}, expected {list(expected)} of "
            f"{' or '.join(allowed)}",
        )
    if layer.kind == "nvfp4":
        if layer.factor is None:
            raise _wrong(info, f"is nvfp4 without {layer.name}.weight_scale_2")
        _check_floats(source, layer.factor, {1, math.prod(experts)})


def _scale_counts(shape: tuple[int, ...]) -> set[int]:
    """How many scales a matrix or a bank in 8-bit floats may have."""
    return {1, shape[0]} if len(shape) == 2 else {1, shape[0], shape[0] * shape[1]}


def _check_floats(source: Source, key: str, counts: set[int]) -> None:
    info = source.infos[key]
    if info.dtype not in ("F32", "BF16", "F16") or info.num_elements not in counts:
        raise _wrong(
            info,
            f"is {list(info.shape)} of {info.dtype}, expected "
            f"{' or '.join(map(str, sorted(counts)))} floats",
        )
    check_scales(key, info, source.read(key))


def _wrong(info: TensorDescription, what: str) -> CheckpointError:
    return CheckpointError(f"{info.file}: key {info.key!r} {what}", _DAMAGED)


def _matrix(source: Source, layer: QuantisedLayer) -> DerivedTensor:
    info = source.infos[layer.codes]
    shape = info.shape
    if layer.kind == "nvfp4":
        shape = (*shape[:-1], 2 * shape[-1])
    return DerivedTensor(
        key=layer.codes,
        file=info.file,
        shape=shape,
        dtype="F32" if len(shape) == 2 else "BF16",
        num_bytes=sum(source.infos[key].num_bytes for key in _keys_of(source, layer.name)),
        load=lambda: _load(source, layer),
        packing=layer.kind,
        codes=_codes(source, layer, shape),
    )


def _codes(
    source: Source, layer: QuantisedLayer, shape: tuple[int, ...]
) -> tuple[StoredCodes, ...]:
    """A matrix as it is stored: 8-bit floats and exponents as bytes, scales in float32."""
    if len(shape) != 2 or layer.rotation:
        return ()
    parts = [_part(source, layer.codes, "codes", lambda codes: codes.view(torch.uint8))]
    if layer.scale is not None:
        is_float = layer.kind in _ONE_SCALE
        parts.append(_part(source, layer.scale, "scale", _checked_scale(source, layer), is_float))
    if layer.factor is not None:
        parts.append(_part(source, layer.factor, "factor", lambda factor: factor.float(), True))
    return (StoredCodes.of(layer.kind, shape, parts),)


def _part(
    source: Source, key: str, name: str, change: Callable[[Tensor], Tensor], is_float: bool = False
) -> DerivedTensor:
    return replace(
        derived(source, key, name),
        dtype="F32" if is_float else "U8",
        load=lambda: change(source.read(key)),
    )


def _checked_scale(source: Source, layer: QuantisedLayer) -> Callable[[Tensor], Tensor]:
    def check(scale: Tensor) -> Tensor:
        assert layer.scale is not None
        check_scales(layer.scale, source.infos[layer.scale], _typed(layer, scale))
        return scale.float() if layer.kind in _ONE_SCALE else scale.view(torch.uint8)

    return check


def _load(source: Source, layer: QuantisedLayer) -> Tensor:
    """Decoded: a matrix in float32; a bank in bfloat16, expert by expert, since it is large."""
    codes = source.read(layer.codes)
    scale = torch.ones(()) if layer.scale is None else source.read(layer.scale)
    if layer.scale is not None:
        check_scales(layer.scale, source.infos[layer.scale], _typed(layer, scale))
    factor = torch.ones(()) if layer.factor is None else source.read(layer.factor)
    if codes.dim() == 2:
        return _decoder(layer)(codes, scale, factor, torch.float32)
    experts = codes.shape[0]
    if scale.numel() == 1:
        scales = scale.reshape(1).expand(experts)
    else:
        scales = scale.reshape(experts, -1) if layer.kind in _ONE_SCALE else scale
    factors = factor.reshape(-1).expand(experts)
    decode = _decoder(layer)
    return torch.stack(
        [decode(codes[i], scales[i], factors[i], torch.bfloat16) for i in range(experts)]
    )


def _typed(layer: QuantisedLayer, scale: Tensor) -> Tensor:
    """NVFP4's scales as what they are, where a file calls them bytes."""
    return scale.view(torch.float8_e4m3fn) if layer.kind == "nvfp4" else scale


def _decoder(layer: QuantisedLayer) -> Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]:
    if layer.kind == "nvfp4":
        return lambda codes, scale, factor, dtype: decode_nvfp4(codes, scale, factor, dtype)
    if layer.kind == "mxfp8":
        return lambda codes, scale, _, dtype: decode_mxfp8(codes, scale, dtype)
    if layer.rotation:
        matrix = hadamard(layer.rotation, 4)
        return lambda codes, scale, _, dtype: rotate(
            decode_scaled(codes, scale, torch.float32), matrix
        ).to(dtype)
    return lambda codes, scale, _, dtype: decode_scaled(codes, scale, dtype)
