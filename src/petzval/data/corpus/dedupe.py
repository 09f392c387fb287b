"""Near-duplicates: pictures whose vectors point the same way, joined into clusters of one picture.

Pairs above the paper's cosine of 0.985 are found by a FAISS index and joined by union-find; of each
cluster the best is kept. All is done in order of id, and a pair is decided by its cosine in float64
and not by the index, so that the order of parts, of import and of threads changes nothing.

The vectors of all pictures are held in memory, 5.7 kB each, on one machine: a million take 6 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from petzval.config import check_ranges, setting
from petzval.data.corpus.embedding import NUM_FEATURES, Vectors, vectors_of
from petzval.data.corpus.verdicts import NOT_JUDGED, NOT_RUN, kept
from petzval.errors import MissingExtraError

try:
    import faiss
except ImportError as error:
    raise MissingExtraError("faiss-cpu", "data") from error

_QUERIES = 1024
_MARGIN = 1e-3
"""How far below the threshold the index is asked, which counts in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateSettings:
    """What counts as the same picture.

    Attributes:
        cosine: pairs above it are joined; from the paper.
        exact_up_to: pictures that are compared each with each. Above that an inverted-file index
            compares each with the lists nearest to it, and misses a few pairs.
        num_probes: how many lists.
    """

    cosine: float = setting(0.985, minimum=0.0, maximum=1.0)
    exact_up_to: int = setting(200_000, minimum=0)
    num_probes: int = setting(32, minimum=1)

    def __post_init__(self) -> None:
        check_ranges(self)


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────


def similar_pairs(
    vectors: Vectors, settings: DuplicateSettings
) -> Iterator[tuple[int, int, float]]:
    """(first, second, cosine) of all pairs above the threshold, first < second, in order."""
    if len(vectors) < 2:
        return
    index = _index(vectors, settings)
    for start in range(0, len(vectors), _QUERIES):
        queries = vectors[start : start + _QUERIES]
        limits, _, found = index.range_search(queries, settings.cosine - _MARGIN)
        for row in range(len(queries)):
            first = start + row
            others = np.sort(found[limits[row] : limits[row + 1]])
            others = others[others > first]
            cosines = vectors[others].astype(np.float64) @ vectors[first].astype(np.float64)
            for second, cosine in zip(others.tolist(), cosines.tolist(), strict=True):
                if cosine > settings.cosine:
                    # Rounded, since the last bits are the processor's own affair.
                    yield first, second, round(min(cosine, 1.0), 6)


def _index(vectors: Vectors, settings: DuplicateSettings) -> faiss.Index:
    flat = faiss.IndexFlatIP(NUM_FEATURES)
    if len(vectors) <= settings.exact_up_to:
        flat.add(vectors)
        return flat
    num_lists = max(1, int(4 * len(vectors) ** 0.5))
    index = faiss.IndexIVFFlat(flat, NUM_FEATURES, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 0
    index.nprobe = min(settings.num_probes, num_lists)
    # Every n-th in order of id: ids are hashes, so this is a fair sample.
    step = max(1, len(vectors) // (64 * num_lists))
    index.train(np.ascontiguousarray(vectors[::step]))
    index.add(vectors)
    return index


class Clusters:
    """Union-find over 0 … n - 1; the root of a cluster is its smallest member."""

    def __init__(self, num_members: int) -> None:
        self._parent = list(range(num_members))

    def root(self, member: int) -> int:
        """The smallest member of its cluster."""
        while self._parent[member] != member:
            self._parent[member] = self._parent[self._parent[member]]
            member = self._parent[member]
        return member

    def join(self, first: int, second: int) -> None:
        """Make two clusters one."""
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low

    def members(self) -> dict[int, list[int]]:
        """Members of each cluster by root, all ascending."""
        found: dict[int, list[int]] = {}
        for member in range(len(self._parent)):
            found.setdefault(self.root(member), []).append(member)
        return found


# ── the stage ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Columns: score (largest cosine to another of its cluster, null where it is alone), keep,
    reason, cluster (id of the picture kept; its own where nothing was compared).

    The best of a cluster has the largest area, then the highest aesthetic score where there is one,
    then the smallest id. Pictures that another step dropped are not compared: a blurred copy must
    not stand for a sharp one.

    Args:
        judged_by: the other cleaning steps.
    """

    judged_by: tuple[str, ...]
    settings: DuplicateSettings = field(default_factory=DuplicateSettings)
    name: str = "duplicates"
    version: int = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """Areas, vectors, and all other verdicts."""
        return ("pixels", "embedding", *self.judged_by)

    def run_corpus(self, parts: Sequence[pa.Table]) -> Sequence[pa.Table]:
        """All parts at once."""
        rows = pa.concat_tables(parts)
        order = np.argsort(np.array(rows["id"].to_pylist()), kind="stable")
        result = self._run(rows.take(pa.array(order)))
        result = result.take(pa.array(np.argsort(order, kind="stable")))
        ends = np.cumsum([part.num_rows for part in parts])
        return [
            result.slice(int(end) - part.num_rows, part.num_rows)
            for part, end in zip(parts, ends, strict=True)
        ]

    def _run(self, rows: pa.Table) -> pa.Table:
        ids: list[str] = rows["id"].to_pylist()
        keeps: list[bool | None] = [None] * len(ids)
        scores: list[float | None] = [None] * len(ids)
        found = list(ids)
        reasons = _reasons_before(rows)
        in_play = np.flatnonzero(kept(rows)).tolist()
        compared = rows.take(pa.array(in_play, pa.int64()))
        with_vector, vectors = vectors_of(compared)
        places = [in_play[place] for place in with_vector]
        ranks = _ranks(rows)
        clusters = Clusters(len(places))
        nearest: dict[int, float] = {}
        for first, second, cosine in similar_pairs(vectors, self.settings):
            clusters.join(first, second)
            for member in (first, second):
                nearest[member] = max(cosine, nearest.get(member, cosine))
        for members in clusters.members().values():
            best = min(members, key=lambda member: ranks[places[member]])
            for member in members:
                place = places[member]
                keeps[place] = member == best
                scores[place] = nearest.get(member)
                found[place] = ids[places[best]]
                reasons[place] = "" if member == best else f"like {ids[places[best]][:12]}"
        return pa.table(
            {
                "score": pa.array(scores, pa.float64()),
                "keep": pa.array(keeps, pa.bool_()),
                "reason": pa.array(reasons, pa.string()),
                "cluster": pa.array(found, pa.string()),
            }
        )


def _reasons_before(rows: pa.Table) -> list[str]:
    """Why each row is not compared, as far as that is so."""
    dropped = f"{NOT_JUDGED}: dropped before"
    reasons: list[str] = rows["embedding.reason"].to_pylist()
    return [
        (reason if reason.startswith(NOT_RUN) or still_in else dropped)
        for reason, still_in in zip(reasons, kept(rows).tolist(), strict=True)
    ]


def _ranks(rows: pa.Table) -> list[tuple[int, float, str]]:
    """Less is better: area, aesthetic score, id."""
    areas = rows["pixels.area"].to_pylist()
    has_scores = "aesthetic.score" in rows.column_names
    scores = rows["aesthetic.score"].to_pylist() if has_scores else [None] * len(areas)
    ids = rows["id"].to_pylist()
    return [
        (-(area or 0), -(score or 0.0), key)
        for area, score, key in zip(areas, scores, ids, strict=True)
    ]
