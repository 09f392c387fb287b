"""Layers in MLX's words, made the matrices that they stand for.

A layer `L` keeps its codes under `L.weight`, in words of 32 bits, the first code lowest. Integers
("affine") have `L.scales` and `L.biases` for the groups of every row; how long a group is stands in
config.json, not in the file, and MLX takes 64 where nobody says otherwise. MXFP4 has exponents, one
for 32 codes, as `L.scales`, and no biases. Banks of experts have one dimension more in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.mlx_integers import MLX_BITS, decode_mlx
from petzval.kernels.mxfp4 import BLOCK, decode_mxfp4
from petzval.weights.comfy_quant import check_scales
from petzval.weights.foreign_formats import WAY_OUT, is_mlx_layer
from petzval.weights.source import DerivedSource, DerivedTensor, Source, TensorDescription, derived

_GROUP, _LONGEST_GROUP = 64, 1 << 16
_FLOATS = ("F32", "BF16", "F16")
_DAMAGED = "download or convert the file again"
_PARTS = ("weight", "scales", "biases")
_WORDS_OF_A_SCALE: Mapping[int, str] = {2: "nvfp4", 4: "mxfp4", 8: "mxfp8"}
"""Words for one scale of a byte → MLX's name of the small float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """One layer, measured.

    Attributes:
        shape: of its matrix or bank.
        bits: of an integer; None for MXFP4.
    """

    name: str
    shape: tuple[int, ...]
    bits: int | None


def unpacked_mlx(source: Source, settings: Mapping[str, Any] | None = None) -> Source:
    """The same tensors with MLX's layers as float32 matrices, and bfloat16 banks of them.

    Args:
        source: a denoiser or a text encoder.
        settings: of its config.json, which may tell the length of a group, layer by layer.

    Raises:
        CheckpointError: naming file and key: shapes that fit no width of a code, wrong types, a
            format that is not read.
    """
    named = (key.removesuffix(".scales") for key in source if key.endswith(".scales"))
    layers = [layer for layer in named if is_mlx_layer(source, layer)]
    for key, info in source.infos.items():
        layer = key.removesuffix(".weight")
        if info.dtype == "U32" and f"{layer}.scales" not in source:
            raise _wrong(info, f"has no '{layer}.scales' beside it")
    if not layers:
        return source
    said: Any = (settings or {}).get("quantization")
    table = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    taken = {f"{layer}.{part}" for layer in layers for part in _PARTS}
    tensors = [derived(source, key) for key in source if key not in taken]
    return DerivedSource(source, tensors + [_matrix(source, each, table) for each in layers])


def mlx_mxfp4_parts(source: Source, layer: str) -> tuple[Tensor, Tensor]:
    """A bank's blocks [E, out, in / 32, 16] and exponents [E, out, in / 32], as published ones.

    Args:
        source: as the file has it.
        layer: one in MXFP4.

    Raises:
        CheckpointError: an exponent that stands for NaN.
    """
    words, scales = _read(source, layer)[:2]
    return words.contiguous().view(torch.uint8).unflatten(-1, (-1, BLOCK // 2)), scales


def _matrix(source: Source, name: str, table: Mapping[str, Any]) -> DerivedTensor:
    layer = _measured(source, name, table)
    info = source.infos[f"{name}.weight"]
    keys = [key for part in _PARTS if (key := f"{name}.{part}") in source]
    return DerivedTensor(
        key=info.key,
        file=info.file,
        shape=layer.shape,
        dtype="F32" if len(layer.shape) == 2 else "BF16",
        num_bytes=sum(source.infos[key].num_bytes for key in keys),
        load=lambda: _load(source, layer),
        packing="MXFP4" if layer.bits is None else f"mlx_q{layer.bits}",
    )


def _measured(source: Source, name: str, table: Mapping[str, Any]) -> _Layer:
    """A layer's shape and width, from headers and settings."""
    info, scales = source.infos[f"{name}.weight"], source.infos[f"{name}.scales"]
    biases = source.infos.get(f"{name}.biases")
    *outer, words = info.shape
    if biases is None and scales.dtype in _FLOATS:
        raise _wrong(info, f"has no '{name}.biases' beside it")
    types = ("U8",) if biases is None else _FLOATS
    for each in (scales, biases):
        if each is not None and (each.dtype not in types or list(each.shape[:-1]) != outer):
            rows = " x ".join(map(str, outer))
            raise _wrong(each, f"is {list(each.shape)} of {each.dtype}, expected {rows} rows")
    groups = scales.shape[-1]
    if biases is None:
        return _Layer(name=name, shape=(*outer, _small_floats(source, name, words)), bits=None)
    if scales.shape != biases.shape:
        raise _wrong(biases, f"is {list(biases.shape)}, expected {list(scales.shape)}")
    group, stated = _stated(info, name, table)
    bits, odd = divmod(32 * words, groups * group or 1)
    counts = f"has {words} words a row for {groups} groups of {group}"
    if odd or bits not in MLX_BITS:
        widths = ", ".join(map(str, MLX_BITS))
        raise _wrong(info, f"{counts}; read are codes of {widths} bits")
    if stated not in (None, bits):
        raise _wrong(info, f"{counts}, which are codes of {bits} bits, not of {stated}")
    return _Layer(name=name, shape=(*outer, groups * group), bits=bits)


def _small_floats(source: Source, name: str, words: int) -> int:
    """Columns of a layer in MXFP4; others of MLX's floats are told by their name."""
    info, groups = source.infos[f"{name}.weight"], source.infos[f"{name}.scales"].shape[-1]
    kind = next((name for each, name in _WORDS_OF_A_SCALE.items() if each * groups == words), None)
    if kind is None:
        raise _wrong(info, f"has {words} words a row for {groups} exponents")
    if kind != "mxfp4":
        raise CheckpointError(
            f"{info.file}: key {info.key!r} is stored in MLX's {kind}, which is not read", WAY_OUT
        )
    return groups * BLOCK


def _stated(info: TensorDescription, name: str, table: Mapping[str, Any]) -> tuple[int, int | None]:
    """Length of a group and bits of a code; the layer's own entry goes before all layers'."""
    own: Any = table.get(name)
    said = cast("dict[str, Any]", own) if isinstance(own, dict) else table
    is_of_integers = said.get("mode", "affine") == "affine"
    group: Any = said.get("group_size", _GROUP) if is_of_integers else _GROUP
    bits: Any = said.get("bits") if is_of_integers else None
    if type(group) is not int or not 0 < group <= _LONGEST_GROUP:
        raise _wrong(info, f"is in groups of {group!r:.40}, as config.json says")
    return group, bits if type(bits) is int else None


def _read(source: Source, layer: str) -> list[Tensor]:
    """Words, scales and biases, the latter two looked at."""
    keys = [key for part in _PARTS if (key := f"{layer}.{part}") in source]
    parts = [source.read(key) for key in keys]
    for key, part in zip(keys[1:], parts[1:], strict=True):
        check_scales(key, source.infos[key], part)
    return parts


def _load(source: Source, layer: _Layer) -> Tensor:
    """A matrix in float32; a bank in bfloat16, expert by expert, since it is large."""
    parts = _read(source, layer.name)
    if len(layer.shape) == 2:
        return _decoded(parts, layer.bits, torch.float32)
    each = zip(*parts, strict=True)
    return torch.stack([_decoded(list(one), layer.bits, torch.bfloat16) for one in each])


def _decoded(parts: list[Tensor], bits: int | None, dtype: torch.dtype) -> Tensor:
    if bits is not None:
        return decode_mlx(parts[0], parts[1], parts[2], bits, dtype)
    blocks = parts[0].contiguous().view(torch.uint8).unflatten(-1, (-1, BLOCK // 2))
    return decode_mxfp4(blocks, parts[1], dtype)


def _wrong(info: TensorDescription, what: str) -> CheckpointError:
    return CheckpointError(f"{info.file}: key {info.key!r} {what}", _DAMAGED)
