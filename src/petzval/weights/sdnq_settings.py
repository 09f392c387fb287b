"""What a folder says of its SDNQ layers: `quantization_config`, layer by layer.

It stands in config.json, or alone in quantization_config.json beside it. One type of number and
one rule hold for all layers, and tables name those that differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from petzval.errors import ConfigError
from petzval.weights.published import read_settings_file

METHOD = "sdnq"
_AT_LEAST = re.compile(r"(?:minimum)?[-_]?(u?)(?:int)?(\d{1,2})[-_]?(?:bits?)?", re.ASCII)
_WIDTH = re.compile(r"[a-z]+(\d{1,2})", re.ASCII)
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})", re.ASCII)
_SHORT = {"fp8": "float8_e4m3fn"}
_MOST_NAMES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SdnqLayer:
    """How one layer is stored.

    Attributes:
        number: its type, such as "uint4".
        rotation: columns that were rotated together, at most; 0 for none.
        wide: whether scales are meant in float32, whatever type they are stored in.
        unread: what of it is not read; "" for nothing.
        fast: the type that the library's faster product multiplies in, for which it stores
            matrices of that kind transposed; "" where that product is not used.
    """

    number: str
    rotation: int
    wide: bool
    unread: str
    fast: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SdnqSettings:
    """The settings of a component.

    Attributes:
        values: as the file has them.
        where: for messages.
    """

    values: Mapping[str, Any]
    where: str

    @property
    def version(self) -> tuple[int, int]:
        """Of the library that wrote them, as far as it decides anything; (0, 0) if unknown."""
        match = _VERSION.match(str(self.values.get("sdnq_version")))
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def layer(self, name: str) -> SdnqLayer:
        """The settings of a layer by its name, without `.weight`.

        Raises:
            ConfigError: a setting is of a wrong type.
        """
        parameter, values = f"{name}.weight", dict(self.values)
        for pattern, own in self._table("modules_quant_config").items():
            if isinstance(own, dict) and is_named(parameter, [pattern]):
                values |= cast("dict[str, Any]", own)
                break
        number = self._number(parameter, values)
        rotated = bool(values.get("use_hadamard"))
        rotation = values.get("hadamard_group_size", 256) if rotated else 0
        if not isinstance(number, str) or type(rotation) is not int or rotation < rotated:
            raise ConfigError(f"{self.where}: the settings of {name!r:.120} cannot be read")
        unread = ""
        if values.get("use_codebook"):
            unread = "with codebooks"
        elif any(values.get(each) not in (None, "none") for each in _TWICE):
            unread = "with quantised scales"
        elif rotation and self.version < (0, 2):
            unread = "rotated by a version before 0.2"
        return SdnqLayer(
            number=number,
            rotation=rotation,
            wide=values.get("dequantize_fp32") is True,
            unread=unread,
            fast=self._fast(parameter, number, values),
        )

    def _fast(self, parameter: str, number: str, values: Mapping[str, Any]) -> str:
        """See `SdnqLayer.fast`; whether a matrix is large enough for it is not asked here."""
        listed: Any = self.values.get("modules_to_not_use_matmul") or []
        if not isinstance(listed, list):
            raise ConfigError(f"{self.where}: modules_to_not_use_matmul is no list")
        names = cast("list[Any]", listed)
        self._check_count("modules_to_not_use_matmul", len(names))
        if values.get("use_quantized_matmul") is not True:
            return ""
        if is_named(parameter, (name for name in names if isinstance(name, str))):
            return ""
        said: Any = values.get("quantized_matmul_dtype")
        own = "int8" if "int" in number else "float8_e4m3fn"
        return _SHORT.get(said, said) if isinstance(said, str) else own

    def _table(self, name: str) -> dict[str, Any]:
        table: Any = self.values.get(name) or {}
        if not isinstance(table, dict):
            raise ConfigError(f"{self.where}: {name} is no object")
        named = cast("dict[str, Any]", table)
        count = sum(len(cast("list[Any]", v)) if isinstance(v, list) else 1 for v in named.values())
        self._check_count(name, count)
        return named

    def _check_count(self, name: str, count: int) -> None:
        if count > _MOST_NAMES:  # each is looked at for every layer
            raise ConfigError(f"{self.where}: {name} names {count:,} modules; no model has so many")

    def _number(self, parameter: str, values: Mapping[str, Any]) -> Any:
        """The type of a layer; a table may set it, or the least width."""
        number: Any = values.get("weights_dtype", "int8")
        for key, names in self._table("modules_dtype_dict").items():
            listed: list[Any] = cast("list[Any]", names) if isinstance(names, list) else [names]
            if not is_named(parameter, (each for each in listed if isinstance(each, str))):
                continue
            least = _AT_LEAST.fullmatch(key.lower()) if _is_least(key.lower()) else None
            if least is None:
                number = key.lower()
                break
            width = _WIDTH.match(str(number))
            if width is not None and int(width[1]) < int(least[2]):
                sign = "u" if least[1] or int(least[2]) <= 4 else ""
                number = f"{sign}int{least[2]}"
                break
        return _SHORT.get(number, number) if isinstance(number, str) else number


_TWICE = ("scale_dtype", "zero_point_dtype")


def _is_least(key: str) -> bool:
    return key.startswith("minimum") or key.endswith(("bit", "bits"))


def is_named(parameter: str, patterns: Iterable[str]) -> bool:
    """Whether a list of modules names a parameter: whole, by a part between dots, by its beginning
    (".img_in") or with stars."""
    parts = parameter.split(".")
    return any(_is_meant(parameter, parts, pattern) for pattern in patterns)


def _is_meant(parameter: str, parts: list[str], pattern: str) -> bool:
    if pattern.startswith("."):
        return parameter.startswith(pattern[1:])
    whole = pattern == parameter or pattern in parts
    return whole or ("*" in pattern and _expression(pattern).match(parameter) is not None)


@lru_cache(maxsize=2 * _MOST_NAMES)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(f"{pattern}*"))


def sdnq_settings(place: Path) -> SdnqSettings | None:
    """What is said of a component's folder, or of the one that a file lies in; None if nothing.

    Raises:
        ConfigError: a file that may say it is damaged.
    """
    folder = place if place.is_dir() else place.parent
    for name in ("config.json", "quantization_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        values, where = read_settings_file(path)
        if name == "config.json":
            inner: Any = values.get("quantization_config")
            values = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
        if values.get("quant_method") == METHOD:
            return SdnqSettings(values=values, where=where)
    return None
