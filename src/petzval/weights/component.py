"""One network's tensors from any file or folder that holds them, recognised by its keys.

No name of a file decides anything. `open_component` reads headers, says which component this is,
finds its settings, and checks every tensor against them, as a whole checkpoint is checked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from petzval.config import parse_json
from petzval.errors import CheckpointError, ConfigError
from petzval.models.experts import PACKINGS
from petzval.models.gpt_oss import GptOssConfig
from petzval.weights.encoder_views import encoder_view
from petzval.weights.foreign_formats import refuse_foreign
from petzval.weights.formats import Kind
from petzval.weights.gguf_header import is_gguf
from petzval.weights.gguf_source import GgufSource
from petzval.weights.header import read_metadata
from petzval.weights.inferred import (
    config_beside,
    from_openai,
    infer_denoiser,
    infer_encoder,
    infer_vae,
)
from petzval.weights.manifest import expected_tensors, find_problems, refuse
from petzval.weights.opening import open_tensors
from petzval.weights.published import (
    DENOISER,
    ENCODER,
    MODEL_INDEX,
    VAE,
    ComponentConfig,
    denoiser_config_from,
    encoder_config_from,
    read_settings_file,
    vae_config_from,
)
from petzval.weights.recognition import TOKENIZER_KEY, homes, one_network
from petzval.weights.source import DerivedSource, Source, derived, packings
from petzval.weights.tensors import STEMS
from petzval.weights.views import denoiser_view, vae_view, without_padding

FOLDERS: Mapping[Kind, str] = {"denoiser": DENOISER, "encoder": ENCODER, "vae": VAE}
"""Where each lies in a published checkpoint."""

SETTINGS_KEY = "petzval.config"
"""Metadata of files that this package writes: the published config.json, as text."""

_TOKENIZER_LIMIT = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenComponent:
    """A network's tensors, open, recognised and checked; no number is read yet.

    Attributes:
        path: as it was named.
        config: its settings.
        source: its tensors under their published names.
        tokenizer: the tokenizer.json that lies in the file, if one does.
        stated: whether the settings were read, and not taken from the published Lens.
    """

    kind: Kind
    path: Path
    config: ComponentConfig
    source: Source
    tokenizer: bytes | None = None
    stated: bool = True

    @property
    def packings(self) -> tuple[str, ...]:
        """Quantised formats that occur in it; empty for plain numbers."""
        return packings(self.source)


def open_component(
    path: str | Path, expected: Kind | None = None, *, keep: Collection[str] = PACKINGS
) -> OpenComponent:
    """Open a file or folder that holds one network.

    Args:
        path: a safetensors or GGUF file; a folder with one or with shards; or a whole checkpoint's
            folder, of which `expected` is taken.
        expected: which component it has to be; None takes any. A file that holds several gives
            this one.
        keep: formats in which the encoder's experts stay packed; in others they are decoded.

    Raises:
        CheckpointError: naming file and key: not a component of Lens, another one than expected,
            damaged, or not whole.
        ConfigError: settings that are damaged, or not in the file and not known.
    """
    component, problems = examine_component(path, expected, keep=keep)
    refuse(problems)
    return component


def examine_component(
    path: str | Path, expected: Kind | None = None, *, keep: Collection[str] = PACKINGS
) -> tuple[OpenComponent, list[str]]:
    """The same with every difference from the architecture told, not refused.

    Raises:
        CheckpointError, ConfigError: as `open_component`, where nothing can be compared.
    """
    path = Path(path)
    place = _place(path, expected)
    opened = _open(place)
    metadata = _metadata(opened)
    refuse_foreign(opened, path, but_mlx=True)
    kind, raw = one_network(opened, path, expected)
    if kind == "vae":
        refuse_foreign(raw, path)
    tokenizer = _tokenizer(raw)
    if TOKENIZER_KEY in raw:
        raw = DerivedSource(raw, [derived(raw, key) for key in raw if key != TOKENIZER_KEY])
    stated = _stated_settings(place, metadata, kind, alone=len(homes(opened)) == 1)
    source = _view(kind, raw, metadata, None if stated is None else stated[0], keep=keep)
    config = _config(kind, source, stated, raw)
    wanted = expected_tensors(config)
    source = without_padding(source, wanted)
    component = OpenComponent(
        kind=kind,
        path=path,
        config=config,
        source=source,
        tokenizer=tokenizer,
        stated=stated is not None,
    )
    return component, find_problems(source, wanted)


def _place(path: Path, expected: Kind | None) -> Path:
    """The file or component's folder itself."""
    if not path.is_dir():
        return path
    if (path / DENOISER).is_dir() and (path / VAE).is_dir():
        if expected is None:
            raise CheckpointError(f"{path}: this is a whole checkpoint, not one component")
        return path / FOLDERS[expected]
    published = any(
        (path / f"{stem}.safetensors{end}").exists()
        for stem in STEMS
        for end in ("", ".index.json")
    )
    if published:
        return path
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")])
    return files[0] if len(files) == 1 else path


def _open(place: Path) -> Source:
    if place.is_file() and is_gguf(place):
        return GgufSource.open(place)
    return open_tensors(place)


def _base(source: Source) -> Source:
    while isinstance(source, DerivedSource):
        source = source.base
    return source


def _metadata(source: Source) -> dict[str, str]:
    """Texts that the file carries beside its tensors."""
    base = _base(source)
    if isinstance(base, GgufSource):
        return {name: value for name, value in base.settings.items() if isinstance(value, str)}
    return read_metadata(base.files[0])


def _tokenizer(source: Source) -> bytes | None:
    if TOKENIZER_KEY not in source:
        return None
    info = source.infos[TOKENIZER_KEY]
    if info.dtype != "U8" or len(info.shape) != 1 or info.num_bytes > _TOKENIZER_LIMIT:
        raise CheckpointError(
            f"{info.file}: key {TOKENIZER_KEY!r} is {list(info.shape)} of {info.dtype}, expected a "
            "row of bytes"
        )
    return source.read(TOKENIZER_KEY).numpy().tobytes()


def _stated_settings(
    place: Path, metadata: Mapping[str, str], kind: Kind, *, alone: bool
) -> tuple[dict[str, Any], str] | None:
    """The settings that stand in the file, or in the config.json beside it, and where."""
    if SETTINGS_KEY in metadata and alone:
        where = f"{place}: metadata {SETTINGS_KEY!r}"
        values = parse_json(metadata[SETTINGS_KEY], where=where)
        if not isinstance(values, dict):
            raise ConfigError(f"{where} is no object")
        return values, where
    beside = config_beside(place)
    if beside is None:
        return None
    values, where = read_settings_file(beside)
    if kind == "encoder":
        values = from_openai(values)
        named = values.get("model_type") == "gpt_oss" or "num_experts_per_tok" in values
    else:
        named = values.get("_class_name") == MODEL_INDEX[FOLDERS[kind]][1]
    # A loose file may lie in a folder of something else; a component's own folder may not.
    return (values, where) if named or place.is_dir() else None


def _view(
    kind: Kind,
    raw: Source,
    metadata: Mapping[str, str],
    settings: Mapping[str, Any] | None,
    *,
    keep: Collection[str],
) -> Source:
    if kind == "denoiser":
        return denoiser_view(raw, metadata, settings)
    if kind == "vae":
        return vae_view(raw)
    return encoder_view(raw, metadata, settings, keep=keep)


def _config(
    kind: Kind, source: Source, stated: tuple[dict[str, Any], str] | None, raw: Source
) -> ComponentConfig:
    if kind == "denoiser":
        return infer_denoiser(source) if stated is None else denoiser_config_from(*stated)
    if kind == "vae":
        return infer_vae(source) if stated is None else vae_config_from(*stated)
    if stated is not None:
        return match_packing(encoder_config_from(*stated), source)
    base = _base(raw)
    settings = base.settings if isinstance(base, GgufSource) else None
    return match_packing(infer_encoder(source, settings), source)


def match_packing(config: GptOssConfig, source: Source) -> GptOssConfig:
    """Believe the tensors: re-packed and de-quantised copies keep each other's config.json."""
    mxfp4 = any(key.endswith(("_proj_blocks", "_proj_scales")) for key in source)
    nvfp4 = any(key.endswith(("_proj_codes", "_proj_tiles")) for key in source)
    return replace(config, packed_experts=mxfp4 or nvfp4, packing="nvfp4" if nvfp4 else "mxfp4")
