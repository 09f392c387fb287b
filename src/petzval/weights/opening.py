"""A component's folder or file as tensors, with what its folder says of them already applied.

SDNQ's layers are told by settings that lie in the folder, so that they become matrices here, before
anybody asks which network it is.
"""

from __future__ import annotations

from pathlib import Path

from petzval.weights.foreign_formats import refuse_foreign
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


def open_denoiser(folder: Path) -> Source:
    """A denoiser's own folder, whose tensors may have MLX's names and codes, or ComfyUI's codes.

    Raises:
        CheckpointError: as `open_tensors`, or a format that is not read.
        ConfigError: as `open_tensors`.
    """
    source = open_tensors(folder)
    refuse_foreign(source, folder, but_mlx=True)
    config = folder / "config.json"
    settings = read_settings_file(config)[0] if config.is_file() else None
    return denoiser_view(source, read_metadata(source.files[0]), settings)
