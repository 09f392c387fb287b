"""SD.Next's quantised layers (SDNQ), made the matrices that they stand for.

A layer `L` keeps its codes under `L.weight`, and beside it `L.scale`, `L.zero_point` for unsigned
codes, and where a low-rank part was taken off first, its factors `L.svd_up` and `L.svd_down`. Some
layers are stored transposed, for a faster product: their scales tell, and where there is only one
scale, or a factor is as high as wide, the settings. What type the codes are of stands in the
settings alone (`sdnq_settings`). Codes of whole bytes keep the shape of what was quantised; packed
ones have lost it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.hadamard import LARGEST_ROTATION, hadamard, is_power_of, rotate
from petzval.kernels.matrix_codes import SCALE_BITS, sdnq_kind
from petzval.kernels.sdnq import SDNQ_FLOATS, SDNQ_INTEGERS, decode_sdnq, num_values
from petzval.weights.comfy_quant import check_scales
from petzval.weights.foreign_formats import WAY_OUT
from petzval.weights.header import DTYPES
from petzval.weights.sdnq_settings import SdnqLayer, SdnqSettings
from petzval.weights.source import (
    FLOAT8,
    DerivedSource,
    DerivedTensor,
    Source,
    StoredCodes,
    TensorDescription,
    derived,
)

_FACTORS = ("svd_up", "svd_down")
_READ = ("weight", "scale", "zero_point", *_FACTORS)
_TWICE = ("scale_2", "scale_zero_point", "zero_point_scale", "zero_point_2")
_FLOATS = ("F32", "BF16", "F16")
_DAMAGED = "download the file again"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """One layer, measured: what `_load` needs.

    Attributes:
        rows, columns: of its matrix.
        transposed: whether codes and scales lie [columns, rows] and [1, rows].
        turned: whether the low-rank part's factors lie transposed.
        rotation: columns that were rotated together; 0 for none.
    """

    name: str
    number: str
    rows: int
    columns: int
    transposed: bool
    turned: bool
    rotation: int
    wide: bool


class _Unpacked(DerivedSource):
    """Its numbers are those of the file and of the settings."""

    def __init__(
        self, base: Source, tensors: Iterable[DerivedTensor], settings: SdnqSettings
    ) -> None:
        super().__init__(base, tensors)
        self._settings = settings

    def digest(self) -> str:
        said = json.dumps(dict(self._settings.values), sort_keys=True)
        return hashlib.sha256(f"{super().digest()}:{said}".encode()).hexdigest()


def sdnq_layers(source: Source) -> list[str]:
    """Names of the layers that are stored as SDNQ stores them, without `.weight`."""
    named = (key.removesuffix(".scale") for key in source if key.endswith(".scale"))
    return [name for name in named if f"{name}.weight" in source]


def unpacked_sdnq(source: Source, settings: SdnqSettings) -> Source:
    """The same tensors with SDNQ's layers as float32 matrices.

    Args:
        source: a component, names as in its file.
        settings: of its folder.

    Raises:
        CheckpointError: naming file and key: a variant that is not read, a missing or misshapen
            part.
        ConfigError: the settings are damaged.
    """
    layers = sdnq_layers(source)
    if not layers:
        return source
    taken = {f"{layer}.{part}" for layer in layers for part in (*_READ, *_TWICE)}
    tensors = [derived(source, key) for key in source if key not in taken]
    matrices = [_matrix(source, each, settings) for each in layers]
    return _Unpacked(source, tensors + matrices, settings)


def _matrix(source: Source, name: str, settings: SdnqSettings) -> DerivedTensor:
    layer = _measured(source, name, settings)
    keys = [key for part in _READ if (key := f"{name}.{part}") in source]
    info = source.infos[keys[0]]
    return DerivedTensor(
        key=keys[0],
        file=info.file,
        shape=(layer.rows, layer.columns),
        dtype="F32",
        num_bytes=sum(source.infos[key].num_bytes for key in keys),
        load=lambda: _load(source, layer),
        packing=f"sdnq_{layer.number}",
        codes=_codes(source, layer),
    )


def _codes(source: Source, layer: _Layer) -> tuple[StoredCodes, ...]:
    """A matrix as it is stored, where nothing but scales and offsets makes it."""
    scale = source.infos[f"{layer.name}.scale"]
    rotated = layer.rotation or f"{layer.name}.svd_up" in source
    if rotated or layer.transposed or scale.shape[:1] != (layer.rows,):
        return ()
    number = torch.float32 if layer.wide else scale.torch_dtype
    bits = SCALE_BITS[number]
    name = next(name for name, dtype in DTYPES.items() if dtype == bits)
    key = f"{layer.name}.weight"
    codes = derived(source, key, "codes")
    parts = [replace(codes, dtype="U8", load=lambda: source.read(key).view(torch.uint8))]
    for part in ("scale", "zero_point"):
        if f"{layer.name}.{part}" in source:
            stored = derived(source, f"{layer.name}.{part}", part)
            load = partial(_as_bits, source, layer, part, bits)
            parts.append(replace(stored, dtype=name, load=load))
    kind = sdnq_kind(layer.number, number)
    return (StoredCodes.of(kind, (layer.rows, layer.columns), parts),)


def _as_bits(source: Source, layer: _Layer, part: str, bits: torch.dtype) -> Tensor:
    return _scales(source, layer, part).view(bits)


def _measured(source: Source, name: str, settings: SdnqSettings) -> _Layer:
    """A layer's shape and form, from headers and settings."""
    said = settings.layer(name)
    info, scale = source.infos[f"{name}.weight"], source.infos[f"{name}.scale"]
    unread = said.unread
    if not unread and any(f"{name}.{part}" in source for part in _TWICE):
        unread = "with quantised scales"
    if not unread and len(info.shape) > 3:
        unread = "as a convolution"
    if said.number not in SDNQ_INTEGERS and said.number not in SDNQ_FLOATS:
        unread = f"as {said.number!r:.40}"
    if unread:
        raise CheckpointError(
            f"{info.file}: key {info.key!r} is stored by SDNQ {unread}, which is not read", WAY_OUT
        )
    _check_types(source, name, said.number)
    size = _size(info, scale, said)
    if size is None:
        raise _wrong(scale, f"is {list(scale.shape)} beside {list(info.shape)} of {said.number}")
    rows, columns, transposed = size
    if not columns:
        raise _wrong(info, "is empty")
    rotation = _rotation(said.rotation, columns)
    if rotation > LARGEST_ROTATION:
        raise _wrong(info, f"is rotated in groups of {rotation:,} columns")
    return _Layer(
        name=name,
        number=said.number,
        rows=rows,
        columns=columns,
        transposed=transposed,
        turned=_is_turned(source, name, rows, columns, fast=_is_fast(said, rows, columns)),
        rotation=rotation,
        wide=said.wide,
    )


def _size(
    info: TensorDescription, scale: TensorDescription, said: SdnqLayer
) -> tuple[int, int, bool] | None:
    """Rows, columns and whether they lie transposed; None where codes and scales do not fit."""
    shape, scales = info.shape, scale.shape
    if SDNQ_INTEGERS.get(said.number, (8, True))[0] < 8:
        return _packed_size(said.number, shape, scales)
    if len(shape) == 3:  # rows, groups, neighbours
        return (shape[0], shape[1] * shape[2], False) if scales == (*shape[:2], 1) else None
    if len(shape) != 2:
        return None
    if scale.num_elements == 1:
        number, fast = ("int" in name for name in (said.number, said.fast))
        if number == fast and _is_fast(said, *shape):
            return shape[1], shape[0], True
        return *shape, False
    if scales == (shape[0], 1):
        return *shape, False
    return (shape[1], shape[0], True) if scales == (1, shape[1]) else None


def _packed_size(
    number: str, shape: tuple[int, ...], scales: tuple[int, ...]
) -> tuple[int, int, bool] | None:
    """Of codes that lie in one row: their scales count the rows."""
    count = num_values(number, shape)
    if count is None or len(scales) not in (2, 3) or scales[-1] != 1 or 0 in scales:
        return None
    rows, groups = scales[0], scales[1] if len(scales) == 3 else 1
    columns = count // rows
    return (rows, columns, False) if columns % groups == 0 and rows * columns == count else None


def _is_fast(said: SdnqLayer, *lengths: int) -> bool:
    """Whether the library's faster product is used for a matrix of that size."""
    return said.fast != "" and all(length >= 32 and length % 16 == 0 for length in lengths)


def _check_types(source: Source, name: str, number: str) -> None:
    info, scale = source.infos[f"{name}.weight"], source.infos[f"{name}.scale"]
    bits, signed = SDNQ_INTEGERS.get(number, (8, True))
    if number in SDNQ_FLOATS:
        stored = next(dtype for dtype, kind in FLOAT8.items() if kind == number)
    else:
        stored = "I8" if signed and bits == 8 else "U8"
    if info.dtype != stored:
        raise _wrong(info, f"has dtype {info.dtype}, expected {stored} for {number}")
    if scale.dtype not in _FLOATS:
        raise _wrong(scale, f"is of {scale.dtype}, expected floats")
    offset = source.infos.get(f"{name}.zero_point")
    if (offset is None) != signed:
        missing = "has no zero_point beside it" if offset is None else "has a zero_point beside it"
        raise _wrong(info, f"is of {number}, but {missing}")
    if offset is not None and (offset.shape, offset.dtype) != (scale.shape, scale.dtype):
        raise _wrong(offset, f"is {list(offset.shape)}, expected {list(scale.shape)} as the scale")


def _is_turned(source: Source, name: str, rows: int, columns: int, *, fast: bool) -> bool:
    """Whether the factors of a low-rank part lie transposed; both are there, or none.

    Raises:
        CheckpointError: one is missing or does not fit.
    """
    up, down = (source.infos.get(f"{name}.{part}") for part in _FACTORS)
    if up is None or down is None:
        if up is not down:
            raise _wrong(source.infos[f"{name}.weight"], "has one factor of a low-rank part only")
        return False
    plain = len(up.shape) == 2 and down.shape == (up.shape[-1], columns) and up.shape[0] == rows
    turned = len(up.shape) == 2 and down.shape == (columns, up.shape[0]) and up.shape[1] == rows
    if not (plain or turned) or up.dtype not in _FLOATS or down.dtype != up.dtype:
        raise _wrong(up, f"is {list(up.shape)} and its partner {list(down.shape)}")
    return fast if plain and turned else turned


def _rotation(most: int, columns: int) -> int:
    """The columns that are rotated together: the largest power of two up to a limit that divides
    them; fewer than four are not rotated."""
    if not most:
        return 0
    size = 1 << (min(most, columns) - 1).bit_length()
    while columns % size:
        size //= 2
    return size if size >= 4 else 0


def _load(source: Source, layer: _Layer) -> Tensor:
    codes, scale = source.read(f"{layer.name}.weight"), _scales(source, layer, "scale")
    offset = None
    if f"{layer.name}.zero_point" in source:
        offset = _scales(source, layer, "zero_point")
    if layer.transposed:
        codes, scale = codes.T, scale.T
        offset = None if offset is None else offset.T
    values = decode_sdnq(layer.number, codes, scale, offset, layer.columns)
    if f"{layer.name}.svd_up" in source:
        up, down = (_scales(source, layer, part) for part in _FACTORS)
        if layer.turned:
            up, down = up.T.contiguous(), down.T.contiguous()
        values = torch.addmm(values.to(up.dtype), up, down)
    values = values.float()
    if layer.rotation:
        seed = 4 if is_power_of(4, layer.rotation) else 2
        values = rotate(values, hadamard(layer.rotation, seed))
    return values


def _scales(source: Source, layer: _Layer, part: str) -> Tensor:
    """Scales, offsets and factors in the type that is calculated in."""
    key = f"{layer.name}.{part}"
    read = source.read(key)
    check_scales(key, source.infos[key], read)
    return read.float() if layer.wide else read


def _wrong(info: TensorDescription, what: str) -> CheckpointError:
    return CheckpointError(f"{info.file}: key {info.key!r} {what}", _DAMAGED)
