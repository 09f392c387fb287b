"""Each component's tensors under their published names and in their published form.

What a file holds is turned into what the networks expect in three steps, none of which reads a
number: the prefix goes (`recognition`), quantised layers become matrices (`comfy_quant`), and names
and pieces are mapped by the tables of `key_tables`. The text encoder, which has most forms, is in
`encoder_views`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.weights.comfy_quant import unpacked
from petzval.weights.key_tables import DENOISER_MLX, DENOISER_SPLIT, VAE_ORIGINAL, VAE_POINTWISE
from petzval.weights.manifest import ExpectedTensor
from petzval.weights.mlx_quant import unpacked_mlx
from petzval.weights.source import (
    DerivedSource,
    DerivedTensor,
    Source,
    StoredCodes,
    changed,
    derived,
    joined,
    packings,
    stored_codes,
)

_TRACKED = "bn.num_batches_tracked"


def denoiser_view(
    source: Source, metadata: Mapping[str, str], settings: Mapping[str, Any] | None = None
) -> Source:
    """A denoiser; MLX's names are read, and query, key and value that are apart put together.

    Args:
        source: without prefix.
        metadata: of a safetensors file's header.
        settings: of its config.json, where there is one.

    Raises:
        CheckpointError: a quantised layer is damaged, or a third of a fused layer is missing.
    """
    source = unpacked_mlx(source, settings)
    if any(DENOISER_MLX.to_ours(key) for key in source):
        names = {key: DENOISER_MLX.to_ours(key) or key for key in source}
        source = DerivedSource(source, [derived(source, key, names[key]) for key in source])
    source = unpacked(source, metadata)
    pieces = {key: place for key in source if (place := _split_place(key)) is not None}
    if not pieces:
        return source
    groups: dict[str, dict[int, str]] = {}
    for key, (name, third) in pieces.items():
        groups.setdefault(name, {})[third] = key
    tensors = [derived(source, key) for key in source if key not in pieces]
    return DerivedSource(
        source, tensors + [_stacked(source, name, thirds) for name, thirds in groups.items()]
    )


def vae_view(source: Source) -> Source:
    """An autoencoder in either style of names; the original's 1 x 1 convolutions become matrices.

    `bn.num_batches_tracked` takes no part in the arithmetic, so it may be missing.
    """
    tensors: list[DerivedTensor] = []
    for key in source:
        name = VAE_ORIGINAL.to_ours(key) or key
        tensor = derived(source, key, name)
        if name.endswith(VAE_POINTWISE) and tensor.shape[2:] == (1, 1):
            tensor = changed(source, tensor, key, tensor.shape[:2], lambda x: x[:, :, 0, 0])
        tensors.append(tensor)
    if _TRACKED not in source and tensors:
        tensors.append(_constant(source, _TRACKED, torch.zeros((), dtype=torch.int64), "I64"))
    return DerivedSource(source, tensors)


def without_padding(source: Source, expected: Mapping[str, ExpectedTensor]) -> Source:
    """Matrices that a block format filled up with zeros, cut to the architecture's shape.

    A source without such matrices is given back as it is.
    """
    if not {"nvfp4", "mxfp8"} & set(packings(source)):
        return source
    tensors: list[DerivedTensor] = []
    for key in source:
        tensor = derived(source, key)
        wanted = expected[key].shape if key in expected else tensor.shape
        if tensor.packing in ("nvfp4", "mxfp8") and _is_padded(tensor.shape, wanted):
            rows, columns = wanted
            codes = [_cut(each, wanted) for each in tensor.codes] if len(tensor.codes) == 1 else ()
            tensor = changed(source, tensor, key, wanted, lambda x, r=rows, c=columns: x[:r, :c])
            tensor = replace(tensor, codes=tuple(codes))
        tensors.append(tensor)
    return DerivedSource(source, tensors)


def _cut(codes: StoredCodes, wanted: Sequence[int]) -> StoredCodes:
    rows, columns = wanted
    return replace(codes, form=replace(codes.form, shape=(rows, columns)))


def _is_padded(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    if len(shape) != 2 or len(wanted) != 2 or tuple(shape) == tuple(wanted):
        return False
    return all(0 <= have - want < 32 for have, want in zip(shape, wanted, strict=True))


def _constant(source: Source, key: str, value: Tensor, dtype: str) -> DerivedTensor:
    return DerivedTensor(
        key=key,
        file=source.files[0],
        shape=tuple(value.shape),
        dtype=dtype,
        num_bytes=0,
        load=lambda: value,
    )


def _split_place(key: str) -> tuple[str, int] | None:
    """The fused tensor that a key is a third of, and which third."""
    layer, _, parameter = key.rpartition(".")
    owner, _, name = layer.rpartition(".")
    if name not in DENOISER_SPLIT or not owner.endswith(".attn"):
        return None
    fused, third = DENOISER_SPLIT[name]
    return f"{owner}.{fused}.{parameter}", third


def _stacked(source: Source, name: str, thirds: Mapping[int, str]) -> DerivedTensor:
    """Query, key and value, one below the other."""
    first = source.infos[next(iter(thirds.values()))]
    if len(thirds) != 3:
        missing = [("query", "key", "value")[i] for i in range(3) if i not in thirds]
        raise CheckpointError(
            f"{first.file}: key {first.key!r} is a third of {name!r}, but its "
            f"{' and '.join(missing)} is missing",
            "download or convert the file again",
        )
    keys = [thirds[i] for i in range(3)]
    shapes = {source.infos[key].shape for key in keys}
    if len(shapes) != 1 or not first.shape:
        raise CheckpointError(
            f"{first.file}: the thirds of {name!r} have different shapes: "
            f"{', '.join(str(list(source.infos[key].shape)) for key in keys)}"
        )
    shape = (3 * first.shape[0], *first.shape[1:])
    whole = joined(source, name, keys, shape, lambda parts: torch.cat(parts))
    codes = [stored_codes(source, key) for key in keys]
    return replace(whole, codes=sum(codes, ())) if all(codes) else whole
