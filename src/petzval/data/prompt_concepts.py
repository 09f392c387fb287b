"""The concepts that evaluation prompts ask for, and orders of them that never change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from petzval.data.concepts import is_held_out, slug
from petzval.data.core_names import SHAPES
from petzval.errors import DataError

_HELD_OUT_EVERY = 4
_FILE = Path(__file__).with_name("prompt_concepts.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConcept:
    """A plain concept that prompts ask for.

    Attributes:
        id: concept id.
        names: by language.
        held_out: whether no model ever saw a picture of it.
        silhouette: whether it exists as a silhouette that can be painted.
    """

    id: str
    names: Mapping[str, str]
    held_out: bool
    silhouette: bool


@cache
def prompt_concepts() -> tuple[PromptConcept, ...]:
    """The concepts that prompts ask for.

    Raises:
        DataError: the packaged file is damaged.
    """
    try:
        rows = json.loads(_FILE.read_text(encoding="utf-8"))
        return tuple(PromptConcept(**row) for row in rows)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{_FILE} is damaged: {error}", "install petzval again") from error


@cache
def ordered_concepts(salt: str, held_out: bool, silhouette: bool) -> tuple[PromptConcept, ...]:
    """Concepts of one side of the split in an order that depends on `salt` only."""
    usable = [
        concept for concept in prompt_concepts()
        if concept.held_out == held_out and (concept.silhouette or not silhouette)
    ]  # fmt: skip
    return tuple(sorted(usable, key=lambda concept: _rank(salt, concept.id)))


def _rank(salt: str, key: str) -> bytes:
    return hashlib.sha256(f"petzval prompts:{salt}:{key}".encode()).digest()


def choice(salt: str, number: int, options: Sequence[str]) -> str:
    """Each option once in every round of len(options) numbers, the rounds shuffled."""
    rounds, place = divmod(number, len(options))
    return sorted(options, key=lambda option: _rank(f"{salt}:{rounds}", option))[place]


def pick_concept(salt: str, number: int, *, silhouette: bool = False) -> PromptConcept:
    """The concept of prompt `number`: every fourth is a held-out one."""
    held_out = number % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    place = number // _HELD_OUT_EVERY if held_out else number - number // _HELD_OUT_EVERY
    pool = ordered_concepts(salt, held_out, silhouette)
    return pool[place % len(pool)]


def shape_concept(name: str) -> PromptConcept:
    """A simple shape, by its key in `SHAPES`."""
    plain = name.removesuffix(" shape")
    return PromptConcept(
        id=slug(name), names={"en": plain, **SHAPES[name]}, held_out=is_held_out(name),
        silhouette=True,
    )  # fmt: skip
