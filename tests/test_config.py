"""Settings from JSON: strict about names, types and ranges; patient with nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from petzval.config import from_mapping, parse_json, read_json, setting, to_mapping
from petzval.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    lr: float = setting(1e-3, minimum=0.0, maximum=1.0)
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    num_steps: int = setting(minimum=1)
    name: str = "run"
    kind: Literal["cosine", "flat"] = "flat"
    resume: bool = False
    areas: tuple[int, ...] = setting((64,), minimum=16)
    folder: Path | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    weights: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        if self.name == "":
            raise ValueError("name must not be empty")


def build(**values: Any) -> Recipe:
    return from_mapping(Recipe, {"num_steps": 3, **values}, where="recipe.json")


def test_round_trip_through_json() -> None:
    recipe = build(
        name="mini",
        kind="cosine",
        areas=[64, 256],
        folder="runs/mini",
        optimizer={"lr": 1, "betas": [0.5, 0.6]},
        weights={"x": 2},
    )
    assert recipe.areas == (64, 256)
    assert recipe.folder == Path("runs/mini")
    assert recipe.optimizer == Optimizer(lr=1.0, betas=(0.5, 0.6))
    again = from_mapping(Recipe, json.loads(json.dumps(to_mapping(recipe))), where="again")
    assert again == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_stepz": 3}, "unknown setting 'num_stepz' in Recipe"),
        ({"optimizer": {"rl": 1.0}}, "unknown setting 'rl' in Optimizer"),
        ({"num_steps": "3"}, "'num_steps' must be a whole number, got '3'"),
        ({"num_steps": True}, "'num_steps' must be a whole number, got True"),
        ({"num_steps": 3.0}, "'num_steps' must be a whole number, got 3.0"),
        ({"num_steps": 0}, "'num_steps' must be at least 1, got 0"),
        ({"resume": 1}, "'resume' must be true or false, got 1"),
        ({"kind": "linear"}, '\'kind\' must be one of "cosine", "flat"'),
        ({"areas": [64, 8]}, "'areas' must be at least 16, got 8"),
        ({"areas": [64, "8"]}, "'areas'[1] must be a whole number"),
        ({"areas": 64}, "'areas' must be a list"),
        ({"folder": 5}, "'folder' must be a path or null, got 5"),
        ({"optimizer": 5}, "'optimizer' must be an object, got 5"),
        ({"optimizer": {"lr": 2.0}}, "'lr' must be at most 1.0, got 2.0"),
        ({"optimizer": {"lr": float("nan")}}, "'lr' must be a finite number"),
        ({"optimizer": {"lr": 10**400}}, "too large"),
        ({"optimizer": {"betas": [0.9]}}, "'betas' must be a list of 2 values, got 1 values"),
        ({"weights": {"x": "y"}}, "'weights'['x'] must be a number"),
        ({"name": ""}, "recipe.json: name must not be empty"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**values)
    assert message in caught.value.message
    assert caught.value.message.startswith("recipe.json")


def test_an_unknown_name_is_answered_with_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        build(optimizer={"rl": 1.0})
    assert caught.value.hint == "settings: lr, betas"
    assert from_mapping(Optimizer, {"rl": 1.0}, where="x", ignore_unknown=True) == Optimizer()


def test_a_missing_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="'num_steps' of Recipe is missing") as caught:
        from_mapping(Recipe, {}, where="recipe.json")
    assert caught.value.hint == "add 'num_steps' (a whole number)"


@pytest.mark.parametrize("value", [[1], "text", 5, None])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected an object with settings"):
        from_mapping(Optimizer, value, where="x")


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1, column 1: not JSON"),
        (b'{\n "a": 1,\n}', "line 3"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": 1, "a": 2}', "the name 'a' is given twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{\n"a": "\xff"}', "line 2: not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
        (b"[" * 200_000, "nested too deeply"),
        (b"9" * 10_000, "digits"),
        (b" " * 2_000_000, "larger than 1,048,576 bytes"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_json(path, limit_bytes=1 << 20)
    assert message in caught.value.message
    assert str(path) in caught.value.message


def test_a_folder_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is a folder"):
        read_json(tmp_path)
    with pytest.raises(ConfigError, match="it is absent"):
        read_json(tmp_path / "none.json")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert read_json(write(tmp_path, b'\xef\xbb\xbf{"a": [1, 2.5, null]}')) == {"a": [1, 2.5, None]}


def test_text_at_hand_is_parsed_alike() -> None:
    value: Mapping[str, Any] = parse_json('{"a": {"b": 1}}', where="recipe")
    assert value == {"a": {"b": 1}}
    with pytest.raises(ConfigError, match="recipe, line 1, column 2: not JSON"):
        parse_json("{", where="recipe")
