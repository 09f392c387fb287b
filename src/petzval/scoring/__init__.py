"""Judge a picture against what was asked of it: (picture, expectation) to verdict with reasons.

Rewards and benchmarks ask the same question for different reasons, so both use this room. Small
pieces first: `colours` and `positions` give words to pixels and places, `detector` finds objects,
`backbone` and `dual_encoder` say what a cut-out shows, `judge` assembles them into a `Scorer`,
`bundle` keeps the trained weights on disk, and `train` makes them.
"""

from __future__ import annotations
