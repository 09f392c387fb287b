"""The question a scorer answers, as values, and the Protocol every scorer keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from petzval.errors import DataError
from petzval.scoring.positions import POSITIONS

Picture = NDArray[np.uint8]
"""[height, width, 3], RGB, 0 to 255."""

CHECKS: tuple[str, ...] = (
    "concept", "count", "colour", "position", "relation", "background", "style",
)  # fmt: skip
"""Everything that can be asked of a picture, in the order of a report."""

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
"""How the first of two things can lie to the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedObject:
    """One kind of thing that should be in the picture.

    Attributes:
        concept: concept id.
        count: how many of it, or None when the prompt does not say.
        colour: a name of `colours.OBJECT_COLOURS`, or None.
        position: one of `positions.POSITIONS`, or None.
    """

    concept: str
    count: int | None = None
    colour: str | None = None
    position: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a prompt asks for; whatever is None or empty is not judged.

    Attributes:
        objects: the things, each judged for its concept.
        relation: one of `RELATIONS`, or None; only where there are two things.
        background: a name of `colours.BACKGROUND_COLOURS`, or None.
        style: drawing style, or None.
    """

    objects: tuple[ExpectedObject, ...]
    relation: str | None = None
    background: str | None = None
    style: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, without whatever is not asked."""
        result: dict[str, Any] = {
            "objects": [
                {
                    name: getattr(thing, name)
                    for name in ("concept", "count", "colour", "position")
                    if getattr(thing, name) is not None
                }
                for thing in self.objects
            ]
        }
        for name in ("relation", "background", "style"):
            if getattr(self, name) is not None:
                result[name] = getattr(self, name)
        return result

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> Expectation:
        """Inverse of `to_json`.

        Raises:
            DataError: a key is unknown or missing, or a position or relation is not known.
        """
        try:
            objects = tuple(ExpectedObject(**thing) for thing in mapping["objects"])
            rest = {name: value for name, value in mapping.items() if name != "objects"}
            expectation = cls(objects=objects, **rest)
        except (KeyError, TypeError) as error:
            raise DataError(f"this is not an expectation: {error}") from error
        for thing in objects:
            if thing.position is not None and thing.position not in POSITIONS:
                raise DataError(
                    f"unknown position {thing.position!r}", f"one of: {', '.join(POSITIONS)}"
                )
        if expectation.relation is not None and (
            expectation.relation not in RELATIONS or len(objects) != 2
        ):
            raise DataError(
                f"relation {expectation.relation!r} between {len(objects)} things",
                f"two things, and one of: {', '.join(RELATIONS)}",
            )
        return expectation

    def asked(self) -> tuple[str, ...]:
        """The checks that this expectation calls for, in the order of `CHECKS`."""
        present = {
            "concept": bool(self.objects),
            "count": any(thing.count is not None for thing in self.objects),
            "colour": any(thing.colour is not None for thing in self.objects),
            "position": any(thing.position is not None for thing in self.objects),
            "relation": self.relation is not None,
            "background": self.background is not None,
            "style": self.style is not None,
        }
        return tuple(name for name in CHECKS if present[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judgement.

    Attributes:
        checks: right or wrong for each thing asked.
        reasons: what was seen, for each thing asked, in words.
    """

    checks: Mapping[str, bool]
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def passed(self) -> bool:
        """True when everything asked is right."""
        return all(self.checks.values())


@runtime_checkable
class Scorer(Protocol):
    """Judges one picture. Deterministic: the same picture always gets the same verdict."""

    @property
    def identity(self) -> str:
        """Changes whenever a verdict could change: a hash of the weights and the rules."""
        ...

    def score(self, picture: Picture, expectation: Expectation) -> Verdict:
        """Judge `picture` [height, width, 3] by everything that `expectation` asks."""
        ...

    def chance(self, expectation: Expectation) -> Mapping[str, float]:
        """For each thing asked, the share a blind guess would get right."""
        ...
