"""What a benchmark case is: some ways to do one thing, from the slow reference to what runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

Work: TypeAlias = Callable[[], Tensor | None]
"""One run of one way. What it returns is compared between the ways; None is not compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A case, set up.

    Attributes:
        ways: name → work, in order: the first is the slow reference, the last is what the product
            runs, those between add one technique each (a waterfall). A single way has no ratio.
        dtype: the arithmetic's, in words.
        facts: further numbers worth a column: bytes, tokens, parameters.
    """

    ways: Mapping[str, Work]
    dtype: str
    facts: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One thing worth measuring.

    Attributes:
        name: of the row and for the command line.
        title: what is done, in a few words.
        why: why anybody should care.
        prepare: builds inputs and ways; not measured.
        rounds: how often each way runs after its warm-up, interleaved (A B C A B C …).
        min_ratio: the last way must be this many times as fast as the first.
        max_seconds: the last way's median must not be above this.
        tolerance: largest absolute difference allowed between the first and any other way.
        threads: torch's; 0 leaves the machine's default.
    """

    name: str
    title: str
    why: str
    prepare: Callable[[], Prepared]
    rounds: int = 7
    min_ratio: float | None = None
    max_seconds: float | None = None
    tolerance: float = 0.0
    threads: int = 0
