"""What a data card says of a corpus, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from petzval.data.corpus.buckets import LENS_BUCKETS, bucket_family
from petzval.data.corpus.clean import STEPS
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.shard_plan import CAPTION_STAGES
from petzval.data.corpus.verdicts import kept
from petzval.data.corpus.yields import Yield, yields


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionFacts:
    """The captions of one kind.

    Attributes:
        kind: "dense", "brief", "mixed" or "source".
        models: who wrote them, with counts.
        statuses: what came of the kept pictures, with counts.
        words: of each caption of a kept picture.
    """

    kind: str
    models: dict[str, int]
    statuses: dict[str, int]
    words: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFacts:
    """Everything on the card; None or empty is a stage that has not run.

    Attributes:
        num_pictures, num_bytes: that were imported.
        num_kept: that no cleaning step dropped.
        steps: the nine, each with its yield, or None where it was never asked to run.
        buckets: kept pictures by bucket, in the order of the families; with zeros.
        num_tokens: of one picture of each bucket.
        crop_loss: of each kept picture.
        num_enlarged: kept pictures that are enlarged to fill their bucket.
        splits: kept pictures by side.
        num_clusters: of two or more near-duplicates.
        sources: (source, licence) -> imported and kept pictures.
    """

    name: str
    num_pictures: int
    num_bytes: int
    num_kept: int
    steps: tuple[tuple[str, Yield | None], ...]
    captions: tuple[CaptionFacts, ...]
    buckets: dict[str, int] | None
    num_tokens: dict[str, int]
    crop_loss: NDArray[np.float64]
    num_enlarged: int
    splits: dict[str, int] | None
    num_clusters: int | None
    sources: dict[tuple[str, str], tuple[int, int]] = field(
        default_factory=dict[tuple[str, str], tuple[int, int]]
    )


def facts_of(corpus: Corpus) -> CorpusFacts:
    """Count a corpus, part by part, whatever has run on it so far.

    Raises:
        DataError: a file is damaged, or a stage has run on some parts only.
    """
    there = [stage for stage in corpus.stages() if _has_run(corpus, stage)]
    steps = [step for step in STEPS if step in there]
    found = {each.step: each for each in yields(corpus, steps)} if steps else {}
    captions = [stage for stage in CAPTION_STAGES if stage in there]
    tally = _Tally()
    for part in corpus.parts():
        wanted = [*steps, *captions, *(s for s in ("buckets", "split") if s in there)]
        rows = corpus.read(part, wanted)
        tally.add_rows(rows.select(_BASE).to_pylist(), kept(rows))
        keep = kept(rows)
        for stage in captions:
            columns = {c: rows[f"{stage}.{c}"].to_pylist() for c in ("text", "status", "model")}
            tally.add_captions(stage.removeprefix("captions-"), columns, keep)
        if "buckets" in there:
            for name in ("bucket", "num_tokens", "crop_loss", "scale"):
                tally.buckets.setdefault(name, []).extend(
                    value
                    for value, wanted_row in zip(
                        rows[f"buckets.{name}"].to_pylist(), keep, strict=True
                    )
                    if wanted_row
                )
        if "split" in there:
            tally.splits.update(_where(rows["split.split"].to_pylist(), keep))
        if "duplicates" in there:
            tally.clusters.update(rows["duplicates.cluster"].to_pylist())
    return tally.facts(corpus, tuple((step, found.get(step)) for step in STEPS), there)


_BASE = ["source", "licence", "num_bytes", "caption"]


def _has_run(corpus: Corpus, stage: str) -> bool:
    return any(corpus.columns_path(stage, part).is_file() for part in corpus.parts())


def _where(values: Sequence[str], keep: NDArray[np.bool_]) -> list[str]:
    return [value for value, wanted in zip(values, keep.tolist(), strict=True) if wanted]


class _Tally:
    """Counts on the way through the parts."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.num_pictures = 0
        self.num_kept = 0
        self.sources: dict[tuple[str, str], tuple[int, int]] = {}
        self.own_words: list[int] = []
        self.words: dict[str, list[int]] = {}
        self.statuses: dict[str, Counter[str]] = {}
        self.models: dict[str, Counter[str]] = {}
        self.buckets: dict[str, list[object]] = {}
        self.splits: Counter[str] = Counter()
        self.clusters: Counter[str] = Counter()

    def add_rows(self, rows: Sequence[dict[str, object]], keep: NDArray[np.bool_]) -> None:
        self.num_pictures += len(rows)
        self.num_kept += int(keep.sum())
        for row, wanted in zip(rows, keep.tolist(), strict=True):
            self.num_bytes += int(str(row["num_bytes"]))
            place = str(row["source"]), str(row["licence"])
            imported, left = self.sources.get(place, (0, 0))
            self.sources[place] = imported + 1, left + int(wanted)
            if wanted and str(row["caption"]).strip():
                self.own_words.append(len(str(row["caption"]).split()))

    def add_captions(
        self, kind: str, columns: dict[str, list[str]], keep: NDArray[np.bool_]
    ) -> None:
        texts, statuses, models = (_where(columns[c], keep) for c in ("text", "status", "model"))
        self.words.setdefault(kind, []).extend(len(text.split()) for text in texts if text)
        self.statuses.setdefault(kind, Counter()).update(statuses)
        self.models.setdefault(kind, Counter()).update(
            model for model, text in zip(models, texts, strict=True) if text
        )

    def facts(
        self, corpus: Corpus, steps: tuple[tuple[str, Yield | None], ...], there: Sequence[str]
    ) -> CorpusFacts:
        captions = [
            CaptionFacts(
                kind=kind,
                models=dict(sorted(self.models[kind].items())),
                statuses=dict(self.statuses[kind].most_common()),
                words=np.array(words, np.int64),
            )
            for kind, words in self.words.items()
        ]
        if self.own_words and not captions:
            own = np.array(self.own_words, np.int64)
            statuses = {"caption": len(own), "empty": self.num_kept - len(own)}
            captions = [CaptionFacts(kind="source", models={}, statuses=statuses, words=own)]
        names = [str(name) for name in self.buckets.get("bucket", []) if name is not None]
        losses = [value for value in self.buckets.get("crop_loss", []) if value is not None]
        scales = [value for value in self.buckets.get("scale", []) if value is not None]
        return CorpusFacts(
            name=corpus.name,
            num_pictures=self.num_pictures,
            num_bytes=self.num_bytes,
            num_kept=self.num_kept,
            steps=steps,
            captions=tuple(captions),
            buckets=_by_family(Counter(names)) if "buckets" in there else None,
            num_tokens=_tokens(names),
            crop_loss=np.array(losses, np.float64),
            num_enlarged=int((np.array(scales, np.float64) > 1 + 1e-9).sum()),
            splits=dict(sorted(self.splits.items())) if "split" in there else None,
            num_clusters=(
                sum(count > 1 for count in self.clusters.values())
                if "duplicates" in there else None
            ),
            sources=dict(sorted(self.sources.items())),
        )  # fmt: skip


def _by_family(counts: Counter[str]) -> dict[str, int]:
    """Counts of all buckets of the bases that occur."""
    bases = sorted({int(name.partition("/")[0]) for name in counts})
    family = bucket_family(*bases) if bases else LENS_BUCKETS
    ordered = sorted(family, key=lambda each: (each.base, each.resolution.aspect))
    return {bucket.name: counts[bucket.name] for bucket in ordered}


def _tokens(names: Sequence[str]) -> dict[str, int]:
    bases = sorted({int(name.partition("/")[0]) for name in names})
    family = bucket_family(*bases) if bases else LENS_BUCKETS
    return {bucket.name: bucket.resolution.num_tokens for bucket in family}
