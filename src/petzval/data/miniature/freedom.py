"""How much of the freedom that captions leave a set of pictures uses: exact measures of variety.

A model may raise its score by always drawing the same thing; a rubric does not see that. Here the
true distribution of what is never named is known, so narrowing can be told from improvement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from petzval.data.miniature.judge import Reading
from petzval.data.miniature.world import GREY, Canvas


@dataclass(frozen=True, kw_only=True, slots=True)
class Variety:
    """Shares of the truth's own variety; 1 is all of it.

    Attributes:
        offsets: entropy of where things stand in their cells, corrected for the number of things
            (Miller 1955) and divided by the logarithm of the number of offsets.
        grey: standard deviation of the background, divided by the truth's.
    """

    offsets: float
    grey: float


def variety(readings: Sequence[Reading], canvas: Canvas) -> Variety:
    """Of some pictures, whatever they were asked to show.

    Raises:
        ValueError: fewer than two pictures, or not a single thing in them.
    """
    found = Counter(offset for reading in readings for offset in reading.offsets)
    total = sum(found.values())
    if len(readings) < 2 or total == 0:
        raise ValueError(f"{total} things in {len(readings)} pictures have no variety to measure")
    entropy = -sum(count / total * math.log(count / total) for count in found.values())
    entropy += (len(found) - 1) / (2 * total)
    greys = [reading.grey for reading in readings]
    mean = sum(greys) / len(greys)
    deviation = math.sqrt(sum((grey - mean) ** 2 for grey in greys) / (len(greys) - 1))
    truth = (GREY[1] - GREY[0]) / math.sqrt(12)
    return Variety(
        offsets=entropy / math.log(len(canvas.offsets)),
        grey=deviation / truth,
    )
