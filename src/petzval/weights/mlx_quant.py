"""Layers of a denoiser in MLX's integers, made the matrices that they stand for.

A layer `L` keeps its codes under `L.weight`, in words of 32 bits, and `L.scales` and `L.biases`
for the groups of every row. How long a group is stands in config.json, not in the file; MLX takes
64 where nobody says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.mlx_integers import MLX_BITS, decode_mlx
from petzval.weights.comfy_quant import check_scales
from petzval.weights.foreign_formats import is_mlx_layer
from petzval.weights.source import DerivedSource, DerivedTensor, Source, TensorDescription, derived

_GROUP = 64
_FLOATS = ("F32", "BF16", "F16")
_DAMAGED = "download or convert the file again"


def unpacked_mlx(source: Source, settings: Mapping[str, Any] | None = None) -> Source:
    """The same tensors with MLX's layers as float32 matrices.

    Args:
        source: a denoiser.
        settings: of its config.json, which may tell the length of a group.

    Raises:
        CheckpointError: naming file and key: shapes that fit no width of a code, wrong types.
    """
    named = (key.removesuffix(".scales") for key in source if key.endswith(".scales"))
    layers = [layer for layer in named if is_mlx_layer(source, layer)]
    if not layers:
        return source
    group = _group(settings or {})
    taken = {f"{layer}.{name}" for layer in layers for name in ("weight", "scales", "biases")}
    tensors = [derived(source, key) for key in source if key not in taken]
    return DerivedSource(source, tensors + [_matrix(source, layer, group) for layer in layers])


def _group(settings: Mapping[str, Any]) -> int:
    said: Any = settings.get("quantization")
    group: Any = cast("dict[str, Any]", said).get("group_size") if isinstance(said, dict) else None
    return group if type(group) is int and 0 < group <= 1 << 16 else _GROUP


def _matrix(source: Source, layer: str, group: int) -> DerivedTensor:
    keys = [f"{layer}.{name}" for name in ("weight", "scales", "biases")]
    info, scales, biases = (source.infos[key] for key in keys)
    rows, words = info.shape
    for each in (scales, biases):
        if each.dtype not in _FLOATS or len(each.shape) != 2 or each.shape[0] != rows:
            raise _wrong(each, f"is {list(each.shape)} of {each.dtype}, expected {rows} rows")
    if scales.shape != biases.shape:
        raise _wrong(biases, f"is {list(biases.shape)}, expected {list(scales.shape)}")
    columns = scales.shape[1] * group
    bits, odd = divmod(32 * words, columns or 1)
    if odd or bits not in MLX_BITS:
        raise _wrong(
            info,
            f"has {words} words a row for {scales.shape[1]} groups of {group}; read are codes of "
            f"{', '.join(map(str, MLX_BITS))} bits",
        )

    def load() -> Tensor:
        parts = [source.read(key) for key in keys]
        for key, part in zip(keys[1:], parts[1:], strict=True):
            check_scales(key, source.infos[key], part)
        return decode_mlx(parts[0], parts[1], parts[2], bits, torch.float32)

    return DerivedTensor(
        key=keys[0],
        file=info.file,
        shape=(rows, columns),
        dtype="F32",
        num_bytes=info.num_bytes + scales.num_bytes + biases.num_bytes,
        load=load,
        packing=f"mlx_q{bits}",
    )


def _wrong(info: TensorDescription, what: str) -> CheckpointError:
    return CheckpointError(f"{info.file}: key {info.key!r} {what}", _DAMAGED)
