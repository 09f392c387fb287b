"""A published checkpoint whose files are not here: keys, shapes and types, to plan with.

The architectures are known, so nothing has to be fetched to say what their weights take. Which type
the denoiser is stored in differs from mirror to mirror; the size of the whole tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from petzval.models.sizes import LENS_GPT_OSS, LENS_MMDIT, LENS_VAE
from petzval.weights.component import OpenComponent
from petzval.weights.formats import Kind
from petzval.weights.header import DTYPES, TensorInfo
from petzval.weights.manifest import expected_tensors
from petzval.weights.published import ComponentConfig, component_folder, file_stem
from petzval.weights.registry import Mirror
from petzval.weights.tensors import TensorSource

_CONFIGS: dict[Kind, ComponentConfig] = {
    "denoiser": LENS_MMDIT,
    "encoder": LENS_GPT_OSS,
    "vae": LENS_VAE,
}
_FLOATS: dict[Kind, str] = {"encoder": "BF16", "vae": "F32"}
_DENOISERS = ("BF16", "F32")


def unfetched_component(mirror: Mirror, kind: Kind) -> OpenComponent:
    """One network of a mirror that holds a whole checkpoint, as its files are known to be.

    Args:
        mirror: whose files are meant; its approximate size tells how the denoiser is stored.
        kind: which network.

    Returns:
        A component whose tensors cannot be read: reading raises `CheckpointError`.
    """
    config = _CONFIGS[kind]
    folder = Path(mirror.name) / component_folder(config)
    file = folder / f"{file_stem(config)}.safetensors"
    dtype = _FLOATS.get(kind) or _denoiser_dtype(mirror)
    infos = {info.key: info for info in _tensors(config, dtype, file)}
    return OpenComponent(
        kind=kind, path=folder, config=config, source=TensorSource((), infos), stated=False
    )


def _denoiser_dtype(mirror: Mirror) -> str:
    """The type in which the whole comes nearest to the mirror's size; bfloat16 where none is known.

    A copy of the original repository has twice the denoiser that one put together again has.
    """
    whole = mirror.approximate_bytes
    if whole is None:
        return _DENOISERS[0]
    others = sum(_num_bytes(_CONFIGS[kind], dtype) for kind, dtype in _FLOATS.items())
    sizes = {dtype: others + _num_bytes(LENS_MMDIT, dtype) for dtype in _DENOISERS}
    return min(_DENOISERS, key=lambda dtype: abs(sizes[dtype] - whole))


def _num_bytes(config: ComponentConfig, dtype: str) -> int:
    return sum(info.num_bytes for info in _tensors(config, dtype, Path()))


def _tensors(config: ComponentConfig, dtype: str, file: Path) -> Iterator[TensorInfo]:
    """One behind the other in one file; shards would be no different to plan with."""
    start = 0
    for key, tensor in expected_tensors(config).items():
        name = {"float": dtype, "packed": "U8", "integer": "I64"}[tensor.kind]
        stop = start + math.prod(tensor.shape) * DTYPES[name].itemsize
        yield TensorInfo(key=key, file=file, shape=tensor.shape, dtype=name, start=start, stop=stop)
        start = stop
