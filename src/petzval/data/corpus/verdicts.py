"""The columns in which every cleaning step says what it thinks: score, keep, reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NOT_RUN = "not run"
"""Reasons of a step that had no model start with this; its `keep` is null everywhere."""

NOT_JUDGED = "not judged"
"""So do those of a step that passed over one picture; its `keep` is null there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A step's word on one picture.

    Attributes:
        score: what was measured; None if nothing could be.
        keep: None if the step did not run on it.
        reason: why it is dropped or was not judged; "" where it is kept.
    """

    score: float | None
    keep: bool | None
    reason: str = ""


def verdict_table(verdicts: Sequence[Verdict]) -> pa.Table:
    """Columns score (float64), keep (bool), reason (text), one row a verdict."""
    return pa.table(
        {
            "score": pa.array([verdict.score for verdict in verdicts], pa.float64()),
            "keep": pa.array([verdict.keep for verdict in verdicts], pa.bool_()),
            "reason": pa.array([verdict.reason for verdict in verdicts], pa.string()),
        }
    )


def kept(rows: pa.Table) -> NDArray[np.bool_]:
    """Which rows no step has dropped, bool [rows]: no `<stage>.keep` of theirs is false.

    A step that did not run drops nothing; whoever reads the data must be told (`yields`).
    """
    result = np.ones(rows.num_rows, np.bool_)
    for name in rows.column_names:
        if name.endswith(".keep"):
            result &= rows[name].fill_null(True).to_numpy()
    return result
