"""On which terms a placement was chosen: what may be used, and for which pictures it suffices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from petzval.inference.dry_networks import Work
from petzval.inference.graphs import CAPACITY
from petzval.inference.placement import Placement, parse_bytes
from petzval.kernels import backends
from petzval.resolution import PIXELS_PER_TOKEN

Amount: TypeAlias = int | str | None
"""Memory in bytes, or in words (`placement.parse_bytes`); None is no limit."""

_WORKS = 64
"""Kept for one placement; what is forgotten is reckoned again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What may be used, in bytes; None is no limit.

    Attributes:
        memory: of the device that draws; on a CPU the process's RAM.
        ram: of this process, where another device draws.
    """

    memory: int | None = None
    ram: int | None = None

    @classmethod
    def of(cls, memory: Amount, ram: Amount) -> Budget:
        """From what a person wrote.

        Raises:
            RequestError: no such amount.
        """
        return cls(memory=_bytes(memory), ram=_bytes(ram))

    def __bool__(self) -> bool:
        return self.memory is not None or self.ram is not None

    def holds(self, placement: Placement) -> bool:
        """Whether a placement's predicted peaks stay within."""
        return (self.memory is None or placement.peak_bytes <= self.memory) and (
            self.ram is None or placement.ram_bytes <= self.ram
        )

    def leaves_holes(self, device: str, ram_bytes: int) -> bool:
        """Whether there is room for the holes of a heap that keeps all pages.

        Args:
            device: that computes; the RAM is its own memory where that is a CPU.
            ram_bytes: this process's peak without them.
        """
        limit = self.memory if device == "cpu" else self.ram
        return limit is None or limit - ram_bytes >= backends.holes_bytes(ram_bytes)

    def holds_at_once(self, placement: Placement) -> bool:
        """The same where everything stays in place and runs beside each other, calls recorded."""
        records = CAPACITY if placement.device.startswith("cuda") else 0
        peak = placement.peak_at_once(records)
        there = placement.stays and self.holds(placement)
        return there and (self.memory is None or peak <= self.memory)


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a placement was chosen under, and what is known to stay within.

    Attributes:
        limits: that it has to keep.
        works: that were reckoned and keep them, the latest last.
        concurrent: pictures that it covers may be decoded, denoised and their words encoded beside
            each other; None where the limits have no room for that. It is one work, since any two
            that it covers may meet.
    """

    limits: Budget
    works: tuple[Work, ...] = ()
    concurrent: Work | None = None

    @classmethod
    def of(cls, limits: Budget, placement: Placement, work: Work) -> Terms:
        """Those of a placement that was reckoned for this work and keeps the limits."""
        concurrent = work if limits.holds_at_once(placement) else None
        return cls(limits=limits, works=(work,), concurrent=concurrent)

    def cover(self, work: Work) -> bool:
        """Whether it is known, with nothing reckoned, that a work keeps the limits."""
        return not self.limits or any(each.covers(work) for each in self.works)

    def what_fits(self, work: Work) -> str:
        """The end of a hint: the largest size that is known to fit, where this one is larger."""
        area = work.grid[0] * work.grid[1]
        grids = [each.grid for each in self.works]
        known = max(grids, key=lambda grid: grid[0] * grid[1], default=None)
        if known is None or known[0] * known[1] >= area:
            return ""
        height, width = (PIXELS_PER_TOKEN * side for side in known)
        return f"; {width}x{height} fits"

    def also(self, work: Work) -> Terms:
        """The same with one more work that keeps the limits."""
        others = [each for each in self.works if not work.covers(each)]
        return replace(self, works=(*others[1 - _WORKS :], work))


def _bytes(amount: Amount) -> int | None:
    return amount if amount is None or isinstance(amount, int) else parse_bytes(amount)
