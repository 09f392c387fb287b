"""Settings as values: frozen dataclasses ⇄ JSON, strictly.

A configuration is a frozen dataclass. `from_mapping` builds one from what JSON can hold and refuses
what it does not know, `to_mapping` is its inverse, `read_json` reads the file with a size limit.
Ranges stand beside the field: `num_steps: int = setting(20, minimum=1)`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from petzval.errors import ConfigError

T = TypeVar("T")

MEBIBYTE = 1 << 20
_MISSING: Any = dataclasses.MISSING


def setting(
    default: Any = _MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field with a range, both ends included.

    Checked by `from_mapping`, and by `check_ranges` where the class calls it.
    """
    metadata = {"minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


def from_mapping(
    cls: type[T], mapping: Mapping[str, Any], *, where: str, ignore_unknown: bool = False
) -> T:
    """Build a dataclass from a mapping of JSON values.

    Lists become tuples where the field says so, nested objects become nested dataclasses, whole
    numbers are accepted for float fields. Nothing else is converted: "3" is not 3, 1 is not true.

    Args:
        cls: a dataclass whose annotations use bool, int, float, str, None, Literal, Path, tuples,
            lists, dicts with string keys, unions and other such dataclasses.
        mapping: the values; a name that is absent takes the field's default.
        where: what is being read (a file, a recipe); messages start with it.
        ignore_unknown: pass over names that are not fields, for files of other programs.

    Raises:
        ConfigError: unknown, missing, of the wrong type, or out of range.
    """
    if not isinstance(mapping, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{where}: expected an object with settings, got {_describe(mapping)}")
    fields = {field.name: field for field in _fields(cls) if field.init}
    if not ignore_unknown:
        for name in mapping:
            if name not in fields:
                raise ConfigError(
                    f"{where}: unknown setting {name!r} in {cls.__name__}",
                    f"settings: {', '.join(fields)}",
                )
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], f"{where}: setting {name!r}")
            _check_range(field, values[name], f"{where}: setting {name!r}")
        elif field.default is _MISSING and field.default_factory is _MISSING:
            raise ConfigError(
                f"{where}: setting {name!r} of {cls.__name__} is missing",
                f"add {name!r} ({_spell(hints[name])})",
            )
    try:
        return cls(**values)
    except ConfigError as error:
        if error.message.startswith(f"{where}: "):  # the class names the same place
            raise
        raise ConfigError(f"{where}: {error.message}", error.hint) from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_ranges(value: Any, *, where: str = "") -> None:
    """Refuse values outside their `setting` range, for `__post_init__`: values built in Python.

    Raises:
        ConfigError: naming the setting, its limit and its value.
    """
    place = f"{where}: setting" if where else "setting"
    for field in _fields(cast("type[Any]", type(value))):
        _check_range(field, getattr(value, field.name), f"{place} {field.name!r}")


def to_mapping(value: Any) -> dict[str, Any]:
    """A dataclass as a mapping of JSON values; `from_mapping` builds an equal one from it."""
    return {
        field.name: _plain(getattr(value, field.name))
        for field in _fields(cast("type[Any]", type(value)))
    }


def read_json(path: str | Path, *, limit_bytes: int = 16 * MEBIBYTE) -> Any:
    """Read a JSON file that another program or person may have written.

    Args:
        path: a regular file in UTF-8.
        limit_bytes: larger files are refused unread.

    Raises:
        ConfigError: naming the file, and the line where there is one: absent, too large, not
            UTF-8, not JSON, a name given twice, NaN or infinity, nested beyond reason.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file" if path.exists() else "absent"
        raise ConfigError(f"{path}: expected a JSON file, but it is {kind}")
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > limit_bytes:
        raise ConfigError(f"{path}: larger than {limit_bytes:,} bytes, the limit for this file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text", "save it as UTF-8") from error
    return parse_json(text, where=str(path))


def parse_json(text: str, *, where: str) -> Any:
    """`read_json` for text that is already at hand; messages start with `where`.

    Raises:
        ConfigError: as `read_json`, naming `where`.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{where}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply to be a configuration") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} is given twice in one object")
        found[name] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the annotation wants it, or a ConfigError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(hint, arguments, value, where)
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in arguments):
            return value
    elif origin in (tuple, list, Sequence):
        if isinstance(value, list | tuple):
            return _convert_list(origin, arguments, cast("list[Any]", value), hint, where)
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            items = cast("Mapping[str, Any]", value).items()
            return {str(k): _convert(arguments[1], v, f"{where}[{k!r}]") for k, v in items}
    elif dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_mapping(cast("type[Any]", hint), cast("Any", value), where=where)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _finite(value, where)
    elif hint is Path:
        if isinstance(value, str):
            return Path(value)
    elif type(value) is hint or (hint is type(None) and value is None):
        return value
    raise ConfigError(f"{where} must be {_spell(hint)}, got {_describe(value)}")


def _convert_union(hint: Any, members: tuple[Any, ...], value: Any, where: str) -> Any:
    for member in members:
        try:
            return _convert(member, value, where)
        except ConfigError:
            if dataclasses.is_dataclass(member) and isinstance(value, Mapping):
                raise
    raise ConfigError(f"{where} must be {_spell(hint)}, got {_describe(value)}")


def _convert_list(
    origin: Any, arguments: tuple[Any, ...], items: Sequence[Any], hint: Any, where: str
) -> Any:
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(items) != len(arguments):
            raise ConfigError(f"{where} must be {_spell(hint)}, got {len(items)} values")
        members = arguments
    else:
        members = (arguments[0],) * len(items)
    converted = [
        _convert(member, item, f"{where}[{i}]")
        for i, (member, item) in enumerate(zip(members, items, strict=True))
    ]
    return converted if origin is list else tuple(converted)


def _finite(value: int | float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError as error:
        raise ConfigError(f"{where} is too large for a number") from error
    if not math.isfinite(number):
        raise ConfigError(f"{where} must be a finite number, got {number}")
    return number


def _check_range(field: dataclasses.Field[Any], value: Any, where: str) -> None:
    minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
    numbers = cast("Any", value) if isinstance(value, tuple | list) else [value]
    for number in numbers:
        if not isinstance(number, int | float):
            continue
        # "not at least" in place of "below", so that NaN is out of every range.
        if minimum is not None and not number >= minimum:
            raise ConfigError(f"{where} must be at least {minimum}, got {number}")
        if maximum is not None and not number <= maximum:
            raise ConfigError(f"{where} must be at most {maximum}, got {number}")


def _spell(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if hint in words:
        return words[hint]
    if hint is type(None):
        return "null"
    if hint is Path:
        return "a path"
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(member) for member in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} values"
    if origin in (tuple, list, Sequence):
        return f"a list, each {_spell(arguments[0])}"
    return "an object"


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}… ({type(value).__name__})" if len(text) > 60 else text


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    return str(value) if isinstance(value, Path) else value
