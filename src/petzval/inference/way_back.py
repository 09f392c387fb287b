"""Back to the placement of the beginning, once that pays.

A large picture may have brought a slower placement, under which all later ones would be drawn. To
go back at the first that fits again could move gigabytes at every other request. So what requests
would have saved is added up, and when it outweighs the way there and back, the networks move: two
placements never cost more than about twice what the better choice for every request would.
Compiling anew what stays, where it was compiled, is not counted.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from math import ceil

from petzval.inference.dry_networks import Work
from petzval.inference.placement import Placement
from petzval.inference.planning import Planning
from petzval.inference.residency import Residency
from petzval.inference.terms import Terms

logger = logging.getLogger(__name__)

_REMEMBERED = 64
"""Kinds of pictures whose seconds are known."""


class WayBack:
    """Adds up what requests would save under the placement of the beginning.

    Not after memory ran out: then predictions were wrong, and nobody goes back on their word.
    """

    def __init__(self) -> None:
        self._home: tuple[Placement, Terms] | None = None
        self._saved = 0.0
        self._seconds: OrderedDict[Work, tuple[Placement, Placement]] = OrderedDict()

    def leave(self, residency: Residency) -> None:
        """Another placement is about to be followed; the first that was left is home."""
        if self._home is None and residency.placement is not None and residency.terms is not None:
            self._home = residency.placement, residency.terms
        self._start()

    def forget(self) -> None:
        """There is no way back any more."""
        self._home = None
        self._start()

    def is_away(self, residency: Residency) -> bool:
        """Whether another placement than that of the beginning is in force."""
        return self._home is not None and self._home[0] is not residency.placement

    def after(
        self, planning: Planning, residency: Residency, work: Work, pictures: int
    ) -> tuple[Placement, Terms] | None:
        """The placement of the beginning and its terms, where it is time to go back.

        A request that does not fit there starts the sum anew: it would bring the other one back.

        Args:
            planning: of the checkpoint.
            residency: has the placement in force.
            work: of the request that is drawn next, as it runs.
            pictures: of that request.
        """
        assert self._home is not None
        assert residency.placement is not None
        home, terms = self._home
        there, here = self._reckoned(planning, work.rounded, home, residency.placement)
        if not terms.limits.holds(there):
            self._saved = 0.0
            return None
        batches = ceil(pictures / work.batch)
        self._saved += max(0.0, here.other_seconds - there.other_seconds) * batches
        if self._saved <= there.load_seconds + here.load_seconds:
            return None
        logger.info("requests fit again; going back to: %s", home)
        self._start()
        self._home = home, terms.also(work.rounded, there)
        return self._home

    def _reckoned(
        self, planning: Planning, work: Work, home: Placement, now: Placement
    ) -> tuple[Placement, Placement]:
        """Both placements for this work; tenths of a second, once for each kind of picture."""
        if work not in self._seconds:
            planner = planning.planner(work, home.baseline_bytes)
            self._seconds[work] = planner.again(home), planner.again(now)
            if len(self._seconds) > _REMEMBERED:
                self._seconds.popitem(last=False)
        self._seconds.move_to_end(work)
        return self._seconds[work]

    def _start(self) -> None:
        self._saved = 0.0
        self._seconds.clear()
