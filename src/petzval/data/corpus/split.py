"""Which pictures are held out: whole clusters of near-duplicates, by a hash of their smallest id.

A picture that is held out has no near-duplicate among those that are trained on, whichever of a
cluster is kept. The hash makes the split the same wherever and in whatever order it is computed,
and a corpus that grows moves no picture unless its cluster gets a smaller id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from petzval.config import check_ranges, setting

TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSettings:
    """How much is held out.

    Attributes:
        share: of the clusters, 0 to 1.
        salt: names the split; another one holds out others.
    """

    share: float = setting(0.005, minimum=0.0, maximum=1.0)
    salt: str = "held out"

    def __post_init__(self) -> None:
        check_ranges(self)


def split_of(smallest_id: str, settings: SplitSettings) -> str:
    """The side of a cluster.

    Args:
        smallest_id: of all its pictures.
    """
    digest = hashlib.sha256(f"{settings.salt}\0{smallest_id}".encode()).digest()
    drawn = int.from_bytes(digest[:8]) / 2**64
    return HELD_OUT if drawn < settings.share else TRAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The stage. Columns: split ("train" or "held_out"), smallest (id that decided it)."""

    settings: SplitSettings = field(default_factory=SplitSettings)
    name: str = "split"
    needs: tuple[str, ...] = ("duplicates",)
    version: int = 1

    def run_corpus(self, parts: Sequence[pa.Table]) -> Sequence[pa.Table]:
        """One table a part."""
        smallest: dict[str, str] = {}
        for part in parts:
            for own, cluster in _pairs(part):
                smallest[cluster] = min(own, smallest.get(cluster, own))
        return [self._columns([smallest[cluster] for _, cluster in _pairs(p)]) for p in parts]

    def _columns(self, smallest: list[str]) -> pa.Table:
        sides = [split_of(each, self.settings) for each in smallest]
        return pa.table({"split": pa.array(sides, pa.string()),
                         "smallest": pa.array(smallest, pa.string())})  # fmt: skip


def _pairs(rows: pa.Table) -> list[tuple[str, str]]:
    """(id, cluster) of each row; a picture that was not compared is a cluster of its own."""
    ids: list[str] = rows["id"].to_pylist()
    clusters: list[str | None] = rows["duplicates.cluster"].to_pylist()
    return [(own, cluster or own) for own, cluster in zip(ids, clusters, strict=True)]
