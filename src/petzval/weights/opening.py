"""A component's folder or file as tensors, with what its folder says of them already applied.

SDNQ's layers are told by settings that lie in the folder, so that they become matrices here, before
anybody asks which network it is. `open_part` is the way into a published folder, whose networks may
lie there in any program's names and codes; a file by itself goes through `component`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from petzval.models.experts import PACKINGS
from petzval.weights.encoder_views import encoder_view
from petzval.weights.foreign_formats import refuse_foreign
from petzval.weights.formats import Kind
from petzval.weights.header import read_metadata
from petzval.weights.published import read_settings_file
from petzval.weights.sdnq_quant import sdnq_layers, unpacked_sdnq
from petzval.weights.sdnq_settings import sdnq_settings
from petzval.weights.source import Source
from petzval.weights.tensors import TensorSource
from petzval.weights.views import denoiser_view


def open_tensors(place: Path) -> Source:
    """A safetensors file, or a component's folder in the published layout.

    Raises:
        CheckpointError: as `TensorSource.open`; SDNQ layers that are damaged or not read.
        ConfigError: settings that such layers need are damaged.
    """
    source = TensorSource.open(place)
    # A file may lie beside settings of something else, which then decide nothing.
    settings = sdnq_settings(place) if sdnq_layers(source) else None
    return source if settings is None else unpacked_sdnq(source, settings)


def open_part(folder: Path, kind: Kind, *, keep: Collection[str] = PACKINGS) -> Source:
    """A network's own folder, whose tensors may have other programs' names and codes.

    What a block format filled up is still there: `views.without_padding` cuts it off, once the
    shapes that are wanted are known.

    Args:
        folder: with config.json and weights.
        kind: which network it has to be.
        keep: formats in which the encoder's experts stay packed.

    Raises:
        CheckpointError: as `open_tensors`, or a format that is not read.
        ConfigError: as `open_tensors`.
    """
    source = open_tensors(folder)
    refuse_foreign(source, folder, but_mlx=kind != "vae")
    if kind == "vae":
        return source
    config = folder / "config.json"
    settings: dict[str, Any] | None = None
    if config.is_file():
        settings, _ = read_settings_file(config)
    metadata = read_metadata(source.files[0])
    if kind == "denoiser":
        return denoiser_view(source, metadata, settings)
    return encoder_view(source, metadata, settings, keep=keep)
