"""Components from different places: named one by one, or in a `petzval.toml`.

    name = "my lens"                      # optional; goes into recipes
    model = "lens"                        # optional: its parts are used where none is named
    denoiser = "lens_bf16.safetensors"    # files or folders, of any format, relative to this file
    encoder = "gpt_oss_20b_nvfp4.safetensors"
    vae = "flux2-vae.safetensors"
    tokenizer = "tokenizer"               # optional where the encoder's file carries one

    [defaults]                            # optional: what requests leave open
    steps = 4
    guidance = 1.0
    base = 1024

Nothing here needs torch, so that a wrong path is answered before torch is loaded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from petzval.errors import ConfigError, RequestError
from petzval.inference.paths import user_path

SUFFIX = ".toml"
_LIMIT_BYTES = 1 << 20
_NETWORKS = ("denoiser", "encoder", "vae")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Where each component comes from; None takes the base checkpoint's."""

    denoiser: Path | None = None
    encoder: Path | None = None
    vae: Path | None = None
    tokenizer: Path | None = None

    @classmethod
    def of(cls, **places: str | Path | None) -> Parts:
        """From paths as a person typed them.

        Raises:
            RequestError: one does not exist.
        """
        return cls(**{name: _existing(name, place) for name, place in places.items()})

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    @property
    def missing(self) -> tuple[str, ...]:
        """The networks that are not named."""
        return tuple(name for name in _NETWORKS if getattr(self, name) is None)

    def over(self, other: Parts) -> Parts:
        """These, and the other's where these name nothing."""
        return Parts(
            **{
                field.name: getattr(self, field.name) or getattr(other, field.name)
                for field in fields(self)
            }
        )


NO_PARTS = Parts()
"""Everything comes from one checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsFile:
    """What a `petzval.toml` says.

    Attributes:
        name: of the whole; the file's stem where it says none.
        model: base checkpoint, by name or by path; None where every network is named.
        defaults: raw settings, checked by whoever knows them.
    """

    name: str
    model: str | None
    parts: Parts
    defaults: Mapping[str, Any]


def read_parts(file: Path) -> PartsFile:
    """Read a `petzval.toml`.

    Raises:
        ConfigError: no TOML, or a setting is unknown or of the wrong kind.
        RequestError: a path in it does not exist, or a network is not named and no model is.
    """
    values = _read(file)
    known = {"name", "model", "defaults", *(field.name for field in fields(Parts))}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"{file}: unknown setting {name!r}", f"settings: {', '.join(sorted(known))}"
            )
        if name != "defaults" and (not isinstance(value, str) or not value.strip()):
            raise ConfigError(f"{file}: setting {name!r} must be a text")
    defaults = values.get("defaults", {})
    if not isinstance(defaults, dict):
        raise ConfigError(f"{file}: setting 'defaults' must be a table")
    named = {
        field.name: _relative(file, values[field.name])
        for field in fields(Parts)
        if field.name in values
    }
    parts = Parts.of(**named)
    model = values.get("model")
    if model is None and parts.missing:
        raise RequestError(
            f"{file}: names no {' and no '.join(parts.missing)}",
            "name a file for each, or a model whose others are used",
        )
    if model is not None and _relative(file, model).exists():
        model = str(_relative(file, model))
    return PartsFile(
        name=values.get("name", file.stem), model=model, parts=parts, defaults=defaults
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LIMIT_BYTES:
            raise ConfigError(f"{file}: larger than {_LIMIT_BYTES:,} bytes")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{file}: is no TOML ({str(error)[:200]})",
            'a line is a name and a text in quotes, such as model = "mini"',
        ) from error


def _relative(file: Path, text: str) -> Path:
    return file.parent / user_path(text)


def _existing(name: str, place: str | Path | None) -> Path | None:
    if place is None:
        return None
    path = user_path(place)
    try:
        exists = path.exists()
    except OSError:  # a name that no file system takes
        exists = False
    if not exists:
        raise RequestError(
            f"the {name} {str(place)[:200]!r} does not exist",
            "name a file of weights, or a folder that holds them",
        )
    return path
