"""The order of work: fair between owners, by priority for each of them.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), with these departures:

1. One item is taken at a time, so a turn may last over several calls of `take`.
2. The quantum is the largest cost at the head of a line: a turn serves at least one item.
3. Companions of a batch are taken out of turn and charged for: a deficit may become negative.
4. Within an owner's line, higher priority comes first, then arrival. Priority never passes over
   another owner: everybody could claim the highest.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting(Generic[T]):
    item: T
    cost: float
    priority: int
    arrival: int

    @property
    def rank(self) -> tuple[int, int]:
        return -self.priority, self.arrival


@dataclass(kw_only=True, slots=True)
class _Line(Generic[T]):
    """What one owner waits for, in order."""

    weight: float
    deficit: float = 0.0
    waiting: list[_Waiting[T]] = field(default_factory=list["_Waiting[T]"])


class FairQueue(Generic[T]):
    """Items of several owners, each with a cost. Not locked: its owner does that."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, _Line[T]] = OrderedDict()
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return sum(len(line.waiting) for line in self._lines.values())

    def put(
        self, item: T, *, owner: str, cost: float, priority: int = 0, weight: float = 1.0
    ) -> None:
        """Add an item.

        Args:
            owner: whose turn it is taken in.
            cost: of serving it, above 0, in any unit that all items share.
            priority: the higher, the earlier among the owner's own.
            weight: share of the owner, above 0, in proportion to the others'.
        """
        line = self._lines.setdefault(owner, _Line(weight=weight))
        line.weight = weight
        line.waiting.append(
            _Waiting(item=item, cost=cost, priority=priority, arrival=next(self._arrivals))
        )
        line.waiting.sort(key=lambda each: each.rank)

    def take(self) -> T | None:
        """The next item, or None where nothing waits."""
        if not self._lines:
            return None
        quantum = max(line.waiting[0].cost for line in self._lines.values())
        while True:
            owner, line = next(iter(self._lines.items()))
            if len(self._lines) == 1:  # its turns cost nobody anything: no debts for later
                line.deficit = max(line.deficit, line.waiting[0].cost)
            if line.deficit >= line.waiting[0].cost:
                return self._serve(owner, line, 0)
            line.deficit += quantum * line.weight
            self._lines.move_to_end(owner)

    def take_companions(self, wanted: Callable[[T], bool], count: int) -> list[T]:
        """Up to `count` items that may share a batch with the one just taken, in fair order."""
        taken: list[T] = []
        for item in [each for each in self if wanted(each)][:count]:
            owner, line, place = self._find(item)
            taken.append(self._serve(owner, line, place))
        return taken

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out all items of a kind, unserved."""
        removed: list[T] = []
        for owner, line in list(self._lines.items()):
            removed += [each.item for each in line.waiting if unwanted(each.item)]
            line.waiting = [each for each in line.waiting if not unwanted(each.item)]
            if not line.waiting:
                del self._lines[owner]
        return removed

    def __iter__(self) -> Iterator[T]:
        """All items in about the order in which they will be taken: one a line, round by round."""
        lines = [[each.item for each in line.waiting] for line in self._lines.values()]
        for turn in itertools.zip_longest(*lines):
            yield from (item for item in turn if item is not None)

    def _serve(self, owner: str, line: _Line[T], place: int) -> T:
        waiting = line.waiting.pop(place)
        line.deficit -= waiting.cost
        if not line.waiting:
            del self._lines[owner]  # who waits for nothing saves nothing up
        return waiting.item

    def _find(self, item: T) -> tuple[str, _Line[T], int]:
        return next(
            (owner, line, place)
            for owner, line in self._lines.items()
            for place, each in enumerate(line.waiting)
            if each.item is item
        )
