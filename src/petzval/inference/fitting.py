"""Whether a request fits the placement in force, asked before anything is computed.

A placement is chosen for one kind of picture. A larger one, a longer prompt or more pictures at
once may need more than it was chosen for, and a CPU would not even say so. What is known to fit
costs nothing here; else the networks are run dry under the same strategies, in tenths of a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from petzval.errors import PlacementError
from petzval.inference.dry_networks import Work
from petzval.inference.placement import Placement
from petzval.inference.plan import GenerationPlan
from petzval.inference.planning import MemoryWarning, Planning
from petzval.inference.residency import Residency, settle_heap
from petzval.inference.terms import Terms
from petzval.inference.way_back import WayBack


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How a request is drawn.

    Attributes:
        batch_size: pictures that run through the networks together.
        text_batch: texts that do; None leaves it open.
        feature_bytes: features of words that may be kept; see `Terms.feature_bytes`.
        placement: to be followed from here on; None keeps the one in force.
        terms: on which that one was chosen.
        concurrent: whether these pictures may be decoded beside the steps of others, and so on; see
            `Residency.concurrent`.
    """

    batch_size: int
    text_batch: int | None = None
    feature_bytes: int | None = None
    placement: Placement | None = None
    terms: Terms | None = None
    concurrent: bool = False


class Fitting:
    """Fits requests to a placement, or a placement to them.

    Args:
        planning: makes placements; None fits nothing, everything is drawn as asked.
    """

    def __init__(self, planning: Planning | None) -> None:
        self._planning = planning
        self._last: tuple[Residency, GenerationPlan, int, Fit] | None = None
        self._way_back = WayBack()

    def of(self, residency: Residency, plan: GenerationPlan, batch_size: int) -> Fit:
        """How a plan is drawn within the limits of the placement in force.

        That placement stays where the pictures fit, if need be fewer at a time. Where not even one
        does, the fastest placement for one takes its place. What was answered last is remembered.

        Args:
            residency: has the placement in force; what is reckoned is added to its terms.
            plan: decided.
            batch_size: as asked for.

        Warns:
            MemoryWarning: fewer pictures run together, or another placement is to be followed.

        Raises:
            PlacementError: no placement has room for a picture.
        """
        placement, terms = residency.placement, residency.terms
        if self._planning is None or placement is None or terms is None or not terms.limits:
            return Fit(batch_size=batch_size, concurrent=residency.concurrent())
        last = self._last
        if last is not None and last[0] is residency and last[1:3] == (plan, batch_size):
            return last[3]
        work = self._planning.work(plan, batch_size=batch_size)
        fit = self._kept(residency, terms, placement, work) or self._chosen(terms, placement, work)
        self._last = (residency, plan, batch_size, fit)
        return fit

    def to_draw(self, residency: Residency, plan: GenerationPlan, batch_size: int) -> Fit:
        """The same for what is drawn now: also the way back to the placement of the beginning.

        Warns, raises: as `of`.
        """
        fit = self.of(residency, plan, batch_size)
        if fit.placement is not None:
            self._way_back.leave(residency)
            return fit
        if self._planning is None or not self._way_back.is_away(residency):
            return fit
        work = self._planning.work(plan, batch_size=fit.batch_size)
        home = self._way_back.after(self._planning, residency, work, len(plan.images))
        if home is None:
            return fit
        placement, terms = home
        concurrent = terms.concurrent is not None and terms.concurrent.covers(work)
        return replace(
            fit,
            placement=placement,
            terms=terms,
            concurrent=concurrent,
            feature_bytes=terms.feature_bytes,
        )

    def stay(self) -> None:
        """Memory ran out, and what is followed from here on is not to be left for more again."""
        self._way_back.forget()

    def concurrent(self, residency: Residency, plan: GenerationPlan) -> bool:
        """Whether a plan's words may be encoded beside the steps of others; nothing is reckoned."""
        if self._planning is None or not residency.concurrent():
            return residency.concurrent()
        return residency.concurrent(self._planning.work(plan))

    def _kept(
        self, residency: Residency, terms: Terms, placement: Placement, work: Work
    ) -> Fit | None:
        """The placement in force with as many pictures at a time as it has room for, if any."""
        for each in _fewer_and_fewer(work):
            if terms.cover(each):
                if not residency.concurrent(each):
                    self._see_beside(residency, terms, placement, each.rounded)
                return _fit(each, work, residency.terms)
            each = each.rounded
            again = self._held(terms, placement, each)
            if again is not None:
                residency.terms = terms.also(each, again)
                return _fit(each, work, residency.terms)
        return None

    def _see_beside(
        self, residency: Residency, terms: Terms, placement: Placement, work: Work
    ) -> None:
        """Whether what keeps the limits may run beside others as well, where that is not known."""
        if terms.concurrent is not None and not terms.concurrent.knows(work):
            again = self._held(terms, placement, work)
            if again is not None:
                residency.terms = terms.also(work, again)

    def _chosen(self, terms: Terms, old: Placement, work: Work) -> Fit:
        """The fastest placement for one picture, with as many of them as it has room for."""
        assert self._planning is not None
        *_, one = (each.rounded for each in _fewer_and_fewer(work))
        try:
            placement = self._planning.planner(one, old.baseline_bytes).choose(terms.limits)
        except PlacementError as error:
            raise PlacementError(error.message, error.hint + terms.what_fits(work)) from None
        warnings.warn(
            f"{placement.width}x{placement.height} needs more memory than was planned for; going "
            f"on with: {placement}",
            MemoryWarning,
            stacklevel=4,
        )
        agreed = Terms.of(terms.limits, placement, one)
        for each in (each.rounded for each in _fewer_and_fewer(work)):
            again = placement if each == one else self._held(terms, placement, each)
            if again is not None:
                agreed = agreed.also(each, again)
                return replace(_fit(each, work, agreed), placement=placement, terms=agreed)
        raise AssertionError("one picture was planned for")

    def _held(self, terms: Terms, placement: Placement, work: Work) -> Placement | None:
        """A placement reckoned for other pictures; None where they do not keep the limits."""
        assert self._planning is not None
        again = self._planning.planner(work, placement.baseline_bytes).again(placement)
        if not terms.limits.holds(again):
            return None
        settle_heap(terms.limits, again.device, again.ram_bytes)
        return again


def smaller_fit(planning: Planning, work: Work, than: Placement | None) -> Fit:
    """What to follow after memory ran out, everything released.

    Where nothing smaller has room for all that was to run together, fewer do.

    Args:
        planning: makes placements.
        work: of the pictures that were too large.
        than: the placement under which they were; None where all networks were there for good.

    Warns:
        MemoryWarning: always.

    Raises:
        PlacementError: there is nothing smaller, not even for one picture.
    """
    refused: PlacementError | None = None
    for each in _fewer_and_fewer(work):
        try:
            placement = planning.smaller(each, than, work)
        except PlacementError as error:
            refused = error
            continue
        going = f"memory ran out; going on with: {placement}"
        warnings.warn(going, MemoryWarning, stacklevel=6)
        terms = Terms.of(planning.limits(), placement, each)
        fit = _fit(each, work, terms)
        return replace(fit, placement=placement, terms=terms, concurrent=False)
    assert refused is not None
    raise refused


def _fit(work: Work, asked: Work, terms: Terms | None) -> Fit:
    if work.batch < asked.batch:
        warnings.warn(
            f"memory has room for {work.batch} pictures at a time, not {asked.batch}",
            MemoryWarning,
            stacklevel=6,
        )
    assert terms is not None
    return Fit(
        batch_size=work.batch,
        text_batch=work.text_batch,
        feature_bytes=terms.feature_bytes,
        concurrent=terms.concurrent is not None and terms.concurrent.covers(work),
    )


def _fewer_and_fewer(work: Work) -> Iterator[Work]:
    """The same for half as many pictures and texts at a time, down to one."""
    yield work
    while work.batch > 1 or work.text_batch > 1:
        work = replace(work, batch=(work.batch + 1) // 2, text_batch=(work.text_batch + 1) // 2)
        yield work
