"""Whether a picture has room under any plan within the limits; asked from any thread.

The thread that draws has `fitting`, which knows the placement in force and may change it. Whoever
takes requests in needs less: would the smallest plan do? That depends on values which never change,
so that nothing is shared with the thread that draws.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from petzval.errors import PetzvalError, PlacementError
from petzval.inference.dry_networks import Work
from petzval.inference.pipeline import Pipeline
from petzval.inference.placement import StorageChoice
from petzval.inference.plan import GenerationPlan
from petzval.inference.planning import Planning
from petzval.inference.speeds import ABSENT, Speeds
from petzval.inference.terms import Budget, Terms
from petzval.inference.variants import Located
from petzval.resolution import PIXELS_PER_TOKEN

_REFUSED = 16
"""Refusals that are remembered: what asks for more than one of them needs no reckoning."""

_WAITING = 4
"""Who may wait for a reckoning at a time: threads that all wait here answer nobody else."""

_SPEEDS = Speeds(cpu_flops=1e11, cpu_decoded=1e9, cpu_copied=1e10, cleared=1e9, read=1e9, **ABSENT)
"""Of any machine: they order the plans, and say nothing about which of them fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a pipeline may use, as a value that travels between processes.

    Attributes:
        limits: of memory.
        baseline: RAM of its process before a network is there.
        works: that are known to keep the limits.
        device, dtype: by torch's names.
        storage, encodes: as in `Planning`.
    """

    limits: Budget
    baseline: int
    works: tuple[Work, ...]
    device: str
    dtype: str
    storage: StorageChoice
    encodes: bool

    @classmethod
    def of(cls, pipeline: Pipeline) -> Bounds | None:
        """Those of a pipeline; None where nothing limits it."""
        placement, terms, planning = pipeline.placement, pipeline.terms, pipeline.planning
        if placement is None or terms is None or planning is None or not terms.limits:
            return None
        return cls(
            limits=terms.limits,
            baseline=placement.baseline_bytes,
            works=terms.works,
            device=placement.device,
            dtype=placement.dtype,
            storage=planning.storage,
            encodes=planning.encodes,
        )


class Room:
    """Refuses pictures that no plan has room for.

    LoRAs are left out of it: the layers that they change may need more than their file's codes, and
    what is too much for that is found out when it is drawn.

    Args:
        planning: of the checkpoint; nothing is loaded.
        bounds: of the pipeline that will draw.
    """

    def __init__(self, planning: Planning, bounds: Bounds) -> None:
        self._planning = planning
        self._baseline = bounds.baseline
        # Both are replaced as wholes, under the lock, and read without it.
        self._terms = Terms(limits=bounds.limits, works=bounds.works)
        self._refused: Sequence[tuple[Work, str]] = ()
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_WAITING)

    @classmethod
    def of(cls, pipeline: Pipeline) -> Room | None:
        """That of a pipeline as it was loaded; None where nothing limits it."""
        bounds, planning = Bounds.of(pipeline), pipeline.planning
        return None if bounds is None or planning is None else cls(planning, bounds)

    @classmethod
    def elsewhere(cls, located: Located, bounds: Bounds) -> Room | None:
        """That of a pipeline in another process, perhaps on another machine.

        Returns:
            None where the checkpoint is not on this machine.
        """
        try:
            planning = Planning.open(
                located,
                (),
                device=bounds.device,
                dtype=bounds.dtype,
                budget=bounds.limits,
                storage=bounds.storage,
                encodes=bounds.encodes,
                speeds=_SPEEDS,
                absent=True,
            )
        except PetzvalError:
            return None
        return cls(planning, bounds)

    def check(self, plan: GenerationPlan) -> None:
        """Refuse a plan whose pictures have no room, not even one at a time.

        What was reckoned before answers at once, also for all that ask for less, or for more than
        what was refused; else it takes some tenths of a second, the first time a second or two.
        Where several wait for that already, nothing is refused: who draws finds out.

        Raises:
            PlacementError: naming the size that does not fit, and one that does.
        """
        work = self._planning.work(plan)
        work = replace(work, text_batch=1, all_texts=work.texts)
        if self._terms.cover(work):
            return
        work = work.rounded
        if self._terms.cover(work) or self._is_refused(work):
            return
        if not self._waiting.acquire(blocking=False):
            return
        try:
            with self._lock:
                if not self._terms.cover(work) and not self._is_refused(work):
                    self._reckon(work)
        finally:
            self._waiting.release()

    def _is_refused(self, work: Work) -> bool:
        """False, or the refusal is raised."""
        for refused, why in self._refused:
            if work.covers(refused):
                same = work.grid == refused.grid
                raise self._refusal(work, why if same else f"{_size(work)} is too large: {why}")
        return False

    def _reckon(self, work: Work) -> None:
        try:
            planner = self._planning.planner(work, self._baseline)
            planner.choose(self._terms.limits, briefly=True)
        except PlacementError as error:
            others = [each for each in self._refused if not each[0].covers(work)]
            # The words alone: an error holds on to all that was reckoned with.
            self._refused = (*others[1 - _REFUSED :], (work, error.message))
            raise self._refusal(work, error.message) from None
        self._terms = self._terms.also(work)

    def _refusal(self, work: Work, message: str) -> PlacementError:
        known = self._terms.what_fits(work).removeprefix("; ")
        what = f"a smaller size: {known}" if known else "fewer words or a smaller size"
        return PlacementError(message, f"ask for {what}")


def _size(work: Work) -> str:
    height, width = (PIXELS_PER_TOKEN * side for side in work.grid)
    return f"{width}x{height}"
