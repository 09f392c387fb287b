"""Which pictures go into which shard, decided before anything is written.

A shard holds pictures of one bucket and one side of the split, in order of id: ids are hashes, so
this is a shuffle that is the same everywhere. How many fit is estimated from the first few of each
group, so that every shard can be written by itself, by any worker, in any order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import pyarrow as pa

from petzval.config import check_ranges, setting, to_mapping
from petzval.data.corpus.captions import cleaning_stages
from petzval.data.corpus.crop import FileSettings
from petzval.data.corpus.manifest import BASE, Corpus
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.samples import sample_files
from petzval.data.corpus.verdicts import kept
from petzval.errors import DataError

_SAMPLE = 6
"""Pictures of a group that its mean size is estimated from."""

_DECIDED = {
    "split.split": "split",
    "buckets.bucket": "bucket",
    "buckets.height": "bucket_height",
    "buckets.width": "bucket_width",
    "buckets.num_tokens": "num_tokens",
    "buckets.crop_loss": "crop_loss",
}

CAPTION_STAGES = ("captions-dense", "captions-mixed", "captions-brief")
SOURCE_CAPTIONS = "source"

_BASE_FIELDS: Any = BASE
ROW = pa.schema(
    [
        *_BASE_FIELDS,
        ("split", pa.string()),
        ("bucket", pa.string()),
        ("bucket_height", pa.int32()),
        ("bucket_width", pa.int32()),
        ("num_tokens", pa.int32()),
        ("crop_loss", pa.float64()),
        ("text", pa.string()),
        ("caption_kind", pa.string()),
        ("caption_model", pa.string()),
    ]
)
"""A row of a plan: base columns, and what the stages decided. `text` is the caption to train on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSettings:
    """How shards are made.

    Attributes:
        target_bytes: of a shard, about.
        files: how pictures are stored.
        captions: "dense", "brief", "mixed" (of `petzval data caption`), "source" (as imported),
            or "" for the one kind that there is.
    """

    target_bytes: int = setting(1 << 30, minimum=1 << 10)
    files: FileSettings = field(default_factory=FileSettings)
    captions: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """One shard: its name, "SPLIT/BASE-WIDTHxHEIGHT-NUMBER", and where its rows are in the plan."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All shards.

    Attributes:
        rows: of `ROW`, by split, bucket and id.
        shards: in that order; together they hold every row once.
        digest: changes whenever a byte of the shards could.
        left_out: reason -> pictures of the corpus that are in no shard.
    """

    rows: pa.Table
    shards: tuple[PlannedShard, ...]
    digest: str
    left_out: dict[str, int]


def caption_stage(corpus: Corpus, wanted: str) -> str:
    """The stage whose captions are used, or "source".

    Raises:
        DataError: that stage has not run, or it is not clear which is meant.
    """
    hint = f"run: petzval data caption {corpus.folder}"
    there = [stage for stage in CAPTION_STAGES if stage in corpus.stages()]
    if not wanted:
        if len(there) == 1:
            return there[0]
        if not there:
            raise DataError(
                f"{corpus.folder}: no captions have been written",
                f"{hint}, or take those of the import with --captions source",
            )
        kinds = ", ".join(stage.removeprefix("captions-") for stage in there)
        raise DataError(f"there are captions of several kinds: {kinds}", "name one with --captions")
    if wanted == SOURCE_CAPTIONS:
        return wanted
    if f"captions-{wanted}" not in CAPTION_STAGES:
        raise DataError(f"unknown captions {wanted!r}", "dense, brief, mixed or source")
    if f"captions-{wanted}" not in there:
        raise DataError(
            f"{corpus.folder}: no {wanted} captions have been written", f"{hint} --mode {wanted}"
        )
    return f"captions-{wanted}"


def make_plan(corpus: Corpus, settings: ShardSettings) -> Plan:
    """Decide on all shards. The rows of the whole corpus are held in memory, about 1 kB each.

    Args:
        corpus: with the stages `buckets`, `split`, cleaning and captions.
        settings: of the shards.

    Raises:
        DataError: a stage has not run, or no picture is left.
    """
    stage = caption_stage(corpus, settings.captions)
    left_out: dict[str, int] = {}
    tables = [_rows(corpus, part, stage, left_out) for part in corpus.parts()]
    rows = pa.concat_tables([pa.Table.from_pylist([], schema=ROW), *tables]).sort_by(
        [("split", "ascending"), ("bucket", "ascending"), ("id", "ascending")]
    )
    if not rows.num_rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise DataError(
            f"{corpus.folder}: no picture is left for shards ({reasons or 'it is empty'})",
            f"see what dropped them: petzval data card {corpus.folder}",
        )
    shards = tuple(_shards(rows, settings, PictureReader(corpus.folder)))
    told = rows.drop_columns(["path", "member", "offset"])
    digest = hashlib.sha256(
        json.dumps([to_mapping(settings), [shard.name for shard in shards]]).encode()
    )
    for start in range(0, told.num_rows, 1024):
        some = told.slice(start, 1024).to_pylist()
        digest.update(json.dumps(some, sort_keys=True).encode() + b"\n")
    return Plan(rows=rows, shards=shards, digest=digest.hexdigest(), left_out=left_out)


def _rows(corpus: Corpus, part: int, captions: str, left_out: dict[str, int]) -> pa.Table:
    """The rows of a part that are trained on, as `ROW`; the others are counted by reason."""
    stages = [*cleaning_stages(corpus, part), "buckets", "split"]
    if captions != SOURCE_CAPTIONS:
        if not corpus.columns_path(captions, part).is_file():
            kind = captions.removeprefix("captions-")
            raise DataError(
                f"{corpus.folder}: part {part} has no {kind} captions",
                f"go on with: petzval data caption {corpus.folder}",
            )
        stages.append(captions)
    table = corpus.read(part, stages)
    if captions == SOURCE_CAPTIONS:
        texts: list[str] = table["caption"].to_pylist()
        kinds, models = ["source"] * len(texts), [""] * len(texts)
    else:
        texts = table[f"{captions}.text"].to_pylist()
        kinds = table[f"{captions}.length"].to_pylist()
        models = table[f"{captions}.model"].to_pylist()
    chosen: list[dict[str, Any]] = []
    keeps: list[bool] = kept(table).tolist()
    columns = table.select([*BASE.names, *_DECIDED]).to_pylist()
    for row, keep, text, kind, model in zip(columns, keeps, texts, kinds, models, strict=True):
        reason = (
            "dropped in cleaning" if not keep
            else "unreadable" if row["buckets.bucket"] is None
            else "without a caption" if not text.strip()
            else ""
        )  # fmt: skip
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        decided = {name: row.pop(column) for column, name in _DECIDED.items()}
        spoken = {"text": text.strip(), "caption_kind": kind, "caption_model": model}
        chosen.append({**row, **decided, **spoken})
    return pa.Table.from_pylist(chosen, schema=ROW)


def _shards(
    rows: pa.Table, settings: ShardSettings, reader: PictureReader
) -> Iterator[PlannedShard]:
    for split, bucket, first, stop in _groups(rows):
        sample = rows.slice(first, min(_SAMPLE, stop - first)).to_pylist()
        sizes = [
            sum(_in_tar(len(data)) for data in sample_files(row, reader, settings.files).values())
            for row in sample
        ]
        size = max(1, round(settings.target_bytes * len(sizes) / sum(sizes)))
        count = -(-(stop - first) // size)
        # Equal shares, so that the last shard of a bucket is no small rest.
        edges = [first + (stop - first) * number // count for number in range(count + 1)]
        for number, (start, end) in enumerate(pairwise(edges)):
            name = f"{split}/{bucket.replace('/', '-')}-{number:05d}"
            yield PlannedShard(name=name, start=start, stop=end)


def _groups(rows: pa.Table) -> Iterator[tuple[str, str, int, int]]:
    """(split, bucket, first row, row after the last) of each run of equal split and bucket."""
    keys = zip(rows["split"].to_pylist(), rows["bucket"].to_pylist(), strict=True)
    place = 0
    for (split, bucket), run in groupby(keys):
        first, place = place, place + sum(1 for _ in run)
        yield split, bucket, first, place


def _in_tar(num_bytes: int) -> int:
    """Bytes of a file in a tar: a header, and its contents in whole blocks."""
    return 512 + -(-num_bytes // 512) * 512
