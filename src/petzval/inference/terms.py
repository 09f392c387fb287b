"""On which terms a placement was chosen: what may be used, and for which pictures it suffices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from petzval.inference.dry_networks import Work
from petzval.inference.graphs import CAPACITY
from petzval.inference.placement import ENCODER, Placement, parse_bytes
from petzval.resolution import PIXELS_PER_TOKEN

Amount: TypeAlias = int | str | None
"""Memory in bytes, or in words (`placement.parse_bytes`); None is no limit."""

_HOLES_BYTES, _HOLES_SHARE = 256_000_000, 0.25
"""More than the holes of a heap that is kept added to any peak that was measured."""

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

    def leaves_holes(self, placement: Placement) -> bool:
        """Whether beside a placement there is room for the holes of a heap that keeps all pages.

        On a CPU that is the memory of the placement's own device, else this process's RAM.
        """
        on_cpu = placement.device == "cpu"
        limit = self.memory if on_cpu else self.ram
        peak = placement.peak_bytes if on_cpu else placement.ram_bytes
        return limit is None or limit - peak >= _holes(peak)

    def left(self, placement: Placement, *, at_once: bool) -> int | None:
        """Bytes that a placement leaves where the text encoder is; None is no limit.

        Args:
            at_once: networks run beside each other there.
        """
        drawing = placement.of(ENCODER).strategy.device == placement.device
        limit = self.memory if drawing else self.ram
        if limit is None:
            return None
        peak = placement.peak_bytes if drawing else placement.ram_bytes
        if drawing and at_once:
            peak = max(peak, placement.peak_at_once(self._records(placement)))
        if placement.device == "cpu" and self.leaves_holes(placement):
            peak += _holes(peak)
        return max(0, limit - peak)

    def holds_at_once(self, placement: Placement) -> bool:
        """The same where everything stays in place and runs beside each other, calls recorded."""
        peak = placement.peak_at_once(self._records(placement))
        there = placement.stays and self.holds(placement)
        return there and (self.memory is None or peak <= self.memory)

    @staticmethod
    def _records(placement: Placement) -> int:
        return CAPACITY if placement.device.startswith("cuda") else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AtOnce:
    """Works of which any may meet: one decoded, one denoised and the words of one encoded.

    Attributes:
        works: these.
        needs: the most that any of them needs of each network.
        apart: works that there was no room for beside these.
    """

    works: tuple[Work, ...]
    needs: Placement
    apart: tuple[Work, ...] = ()

    def covers(self, work: Work) -> bool:
        """Whether a work asks for no more than one of them."""
        return any(each.covers(work) for each in self.works)

    def knows(self, work: Work) -> bool:
        """Whether the answer is known, with nothing reckoned."""
        return self.covers(work) or any(work.covers(each) for each in self.apart)

    def joined(self, work: Work, placement: Placement, limits: Budget) -> AtOnce:
        """With one more, reckoned under the same strategies, where there is room for it."""
        needs = self.needs.joined(placement)
        if not limits.holds_at_once(needs):
            return replace(self, apart=(*self.apart[1 - _WORKS :], work))
        others = [each for each in self.works if not work.covers(each)]
        return replace(self, works=(*others[1 - _WORKS :], work), needs=needs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a placement was chosen under, and what is known to stay within.

    Attributes:
        limits: that it has to keep.
        works: that were reckoned and keep them, the latest last.
        needs: the most that any of these works needs of each network; None where none was reckoned.
        concurrent: pictures that may be decoded, denoised and their words encoded beside each
            other; None where the limits have no room for that with the work that was planned for.
    """

    limits: Budget
    works: tuple[Work, ...] = ()
    needs: Placement | None = None
    concurrent: AtOnce | None = None

    @classmethod
    def of(cls, limits: Budget, placement: Placement, work: Work) -> Terms:
        """Those of a placement that was reckoned for this work and keeps the limits."""
        fits = limits.holds_at_once(placement)
        concurrent = AtOnce(works=(work,), needs=placement) if fits else None
        return cls(limits=limits, works=(work,), needs=placement, concurrent=concurrent)

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

    def also(self, work: Work, placement: Placement | None = None) -> Terms:
        """The same with one more work that keeps the limits.

        Args:
            placement: the one in force, reckoned for this work; None leaves open whether the work
                may run beside others.
        """
        others = [each for each in self.works if not work.covers(each)]
        terms = replace(self, works=(*others[1 - _WORKS :], work))
        if placement is None:
            return terms
        needs = placement if self.needs is None else self.needs.joined(placement)
        concurrent = self.concurrent
        if concurrent is not None and not concurrent.knows(work):
            concurrent = concurrent.joined(work, placement, self.limits)
        return replace(terms, needs=needs, concurrent=concurrent)

    @property
    def feature_bytes(self) -> int | None:
        """Features of words that may be kept, those of the pictures that are drawn included.

        None where no limit speaks against any number. Only what is left over is taken: features
        that are gone are computed again, and a faster placement is worth more.
        """
        if self.needs is None:
            return None
        rooms = [self.limits.left(self.needs, at_once=False)]
        if self.concurrent is not None:
            rooms.append(self.limits.left(self.concurrent.needs, at_once=True))
        known = [room for room in rooms if room is not None]
        return self.needs.of(ENCODER).kept_bytes + min(known) if known else None


def _holes(peak: int) -> int:
    return max(_HOLES_BYTES, int(_HOLES_SHARE * peak))


def _bytes(amount: Amount) -> int | None:
    return amount if amount is None or isinstance(amount, int) else parse_bytes(amount)
