"""What many tests need: golden files and how they are read, patience, a machine's speeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from petzval.inference.speeds import Speeds

GOLDENS = Path(__file__).parent / "goldens" / "public"
TINY_CHECKPOINT = GOLDENS / "checkpoint"

PATIENCE = 300.0
"""Seconds that a test waits for what is going to happen: a busy machine is no failure."""


def until(true: Callable[[], object]) -> None:
    """Return when something has become true; fail where it does not."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


@cache
def golden_tensors(name: str) -> dict[str, Tensor]:
    """All tensors of one golden file, for example `dit.safetensors`."""
    with safe_open(GOLDENS / name, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@cache
def golden_json(name: str) -> Any:
    """One golden JSON document, parsed."""
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def golden_cases(name: str) -> list[str]:
    """The case names of a golden file: what stands before the first dot of its keys."""
    return sorted({key.split(".")[0] for key in golden_tensors(name)})


def golden_ranks() -> dict[bytes, int]:
    """The byte-pair tokens of the tiny tokenizer as ranks, with their bytes spelt out again."""
    names: dict[str, int] = golden_json("checkpoint/tokenizer/tokenizer.json")["model"]["vocab"]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}
    return {bytes(byte_of[letter] for letter in name): rank for name, rank in names.items()}


SPEEDS = Speeds(
    flops=1e11,
    cpu_flops=1e10,
    decoded=1e9,
    cpu_decoded=1e8,
    copied=1e11,
    cpu_copied=1e10,
    cleared=1e9,
    read=1e9,
    sent=1e10,
)
"""Of an ordinary card beside an ordinary CPU, the same on every machine that tests."""

QUICK_TO_READ = Speeds(
    flops=1e10,
    cpu_flops=1e10,
    decoded=1e9,
    cpu_decoded=1e9,
    copied=1e10,
    cpu_copied=1e10,
    cleared=1e13,
    read=1e13,
    sent=1e13,
)
"""Of a machine on which nothing is won by reading ahead, so that plans with room keep all in place:
those that are measured on a busy one tip from run to run."""
