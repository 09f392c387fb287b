"""How many pictures each cleaning step leaves, in the order of the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.verdicts import NOT_RUN


@dataclass(frozen=True, slots=True, kw_only=True)
class Yield:
    """What one step did to the pictures that the steps before it had left.

    Attributes:
        step: its name.
        num_in: pictures that came to it.
        num_dropped: of these, dropped by it.
        num_not_judged: of these, passed over: no verdict, and so not dropped.
        not_run: why the step did not run at all; "" if it did.
        reasons: reasons of dropping, with their counts, the most frequent first.
    """

    step: str
    num_in: int
    num_dropped: int
    num_not_judged: int
    not_run: str
    reasons: tuple[tuple[str, int], ...] = ()

    @property
    def num_left(self) -> int:
        """Pictures that go on to the next step."""
        return self.num_in - self.num_dropped

    @property
    def share_left(self) -> float:
        """Of those that came; 1 where none did."""
        return self.num_left / self.num_in if self.num_in else 1.0


def yields(corpus: Corpus, steps: Sequence[str]) -> list[Yield]:
    """The yield of each step; a picture that two steps would drop counts for the first.

    Raises:
        DataError: a step has left no verdicts on some part.
    """
    counts = {step: Counter[str]() for step in steps}
    reasons = {step: Counter[str]() for step in steps}
    absent = dict.fromkeys(steps, "")
    for part in corpus.parts():
        rows = corpus.read(part, steps)
        still_in = np.ones(rows.num_rows, np.bool_)
        for step in steps:
            keep = rows[f"{step}.keep"].to_pylist()
            words: list[str] = rows[f"{step}.reason"].to_pylist()
            for place in np.flatnonzero(still_in).tolist():
                counts[step]["in"] += 1
                if keep[place] is None:
                    counts[step]["not judged"] += 1
                    if words[place].startswith(NOT_RUN):
                        absent[step] = words[place]
                elif not keep[place]:
                    still_in[place] = False
                    # Each near-duplicate names another picture; counted together they say more.
                    reason = "like another" if step == "duplicates" else words[place]
                    reasons[step][reason] += 1
    return [
        Yield(
            step=step,
            num_in=counts[step]["in"],
            num_dropped=reasons[step].total(),
            num_not_judged=counts[step]["not judged"],
            not_run=absent[step],
            reasons=tuple(reasons[step].most_common()),
        )
        for step in steps
    ]
