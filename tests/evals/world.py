"""A painter and a scorer that need no model: pictures that carry their own verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from petzval.evals.store import png_bytes
from petzval.scoring.scorer import Expectation, Picture, Verdict


class Killed(Exception):
    """Stands in for a kill in the middle of work."""


class NoisePainter:
    """A picture of noise for each (prompt, seed).

    Args:
        survives: pictures painted before it is "killed"; None for ever.
    """

    def __init__(self, survives: int | None = None) -> None:
        self.painted: list[tuple[str, int]] = []
        self.survives = survives

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"painter": "noise", "height": 8, "width": 8}

    def paint(self, prompt: str, seed: int) -> bytes:
        if self.survives is not None and len(self.painted) >= self.survives:
            raise Killed
        self.painted.append((prompt, seed))
        digest = hashlib.sha256(f"{prompt}{seed}".encode()).digest()
        rng = np.random.default_rng(list(digest))
        return png_bytes(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))


class ParityScorer:
    """Right where the first pixels are even: as good as a coin."""

    def __init__(self, identity: str = "parity", survives: int | None = None) -> None:
        self.name = identity
        self.judged = 0
        self.survives = survives

    @property
    def identity(self) -> str:
        return self.name

    def score(self, picture: Picture, expectation: Expectation) -> Verdict:
        if self.survives is not None and self.judged >= self.survives:
            raise Killed
        self.judged += 1
        values = picture.reshape(-1)
        asked = expectation.asked()
        checks = {name: int(values[place]) % 2 == 0 for place, name in enumerate(asked)}
        return Verdict(checks=checks, reasons={name: "parity" for name in asked})

    def chance(self, expectation: Expectation) -> Mapping[str, float]:
        return dict.fromkeys(expectation.asked(), 0.5)
