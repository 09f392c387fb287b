"""Training shards: tars of one bucket each, and an index that finds every sample in them.

    shards.json                                 what they were made from, and the counts
    index.parquet                               one row a sample, see `INDEX`
    train/512-672x384-00000.tar                 WebDataset: ID.jpg, ID.txt, ID.json, and so on
    held_out/…

A sample's three members are one run of bytes, from its `offset`, `num_bytes` long, which is itself
the body of a small tar: `ShardReader` reads it with one seek, and a bucket of objects on a network
serves it as one range. The same corpus and settings give the same bytes, in whatever order, on
however many workers, and however often the program was killed on the way: a shard is whole once its
entry of the index stands in `parts/`, which goes when all is done.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from petzval.config import to_mapping
from petzval.data.corpus.crop import FileSettings
from petzval.data.corpus.manifest import (
    Corpus,
    read_parquet,
    write_parquet,
    write_whole,
)
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.samples import sample_files
from petzval.data.corpus.shard_plan import Plan, PlannedShard, ShardSettings, make_plan
from petzval.data.corpus.stages import Report, run_numbers
from petzval.errors import DataError, PetzvalError

FORMAT = 1

INDEX = pa.schema(
    [
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("id", pa.string()),
        ("split", pa.string()),
        ("bucket", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("num_tokens", pa.int32()),
        ("caption_length", pa.int32()),
        ("source", pa.string()),
    ]
)
"""shard: file name under the folder. offset, num_bytes: of the sample's members, headers included.
height, width: of the bucket, and so of the picture. num_tokens: of the picture in the denoiser.
caption_length: words between white space."""

_PLAN = "plan.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRun:
    """What a call did.

    Attributes:
        num_shards, num_samples: in the folder now.
        num_written: shards that were written by this call; the others were there.
        num_bytes: of all shards.
        left_out: reason -> pictures of the corpus that are in no shard.
    """

    num_shards: int
    num_samples: int
    num_written: int
    num_bytes: int
    left_out: dict[str, int]


# ── one shard ────────────────────────────────────────────────────────────────────────────────────


def _write_shard(
    folder: Path,
    corpus: Path,
    files: FileSettings,
    shards: tuple[PlannedShard, ...],
    number: int,
) -> tuple[str, str] | None:
    """Write a shard, then its entries; a user's mistake is returned, to travel."""
    name = shards[number].name
    try:
        with pq.ParquetFile(folder / _PLAN) as plan:
            rows = plan.read_row_group(number).to_pylist()
        target = _tar_path(folder, name)
        target.parent.mkdir(exist_ok=True)
        draft = target.with_name(f"{target.name}.draft")
        with draft.open("wb") as file:
            entries = _fill(file, rows, name, PictureReader(corpus), files)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
        part = _part_path(folder, name)
        part.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(part, pa.Table.from_pylist(entries, schema=INDEX))
    except PetzvalError as error:
        return error.message, error.hint
    except OSError as error:
        return f"{folder}: cannot be written ({error.strerror})", "make room, then run it again"
    return None


def _fill(
    file: IO[bytes],
    rows: Sequence[Mapping[str, Any]],
    name: str,
    reader: PictureReader,
    files: FileSettings,
) -> list[dict[str, Any]]:
    """Write a tar of samples; what the index says of each."""
    entries: list[dict[str, Any]] = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            start = tar.offset
            for member, data in sample_files(row, reader, files).items():
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
            entries.append(
                {
                    "shard": f"{name}.tar",
                    "offset": start,
                    "num_bytes": tar.offset - start,
                    "id": row["id"],
                    "split": row["split"],
                    "bucket": row["bucket"],
                    "height": row["bucket_height"],
                    "width": row["bucket_width"],
                    "num_tokens": row["num_tokens"],
                    "caption_length": len(row["text"].split()),
                    "source": row["source"],
                }
            )
    return entries


# ── the folder ───────────────────────────────────────────────────────────────────────────────────


def _tar_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.tar"


def _part_path(folder: Path, name: str) -> Path:
    return folder / "parts" / f"{name}.parquet"


@contextmanager
def _claimed(folder: Path, plan: Plan) -> Generator[None]:
    """Hold the folder, which must be empty or of this very plan."""
    import fcntl

    path = folder / "shards.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        if any(each.name != f"{path.name}.draft" for each in folder.iterdir()):
            raise DataError(f"{folder} holds something else", "name a folder that is new or empty")
        write_whole(path, _json_bytes({"format": FORMAT, "plan": plan.digest}))
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{folder}: another program is writing shards here", "wait until it has ended"
            ) from error
        try:
            found: Any = json.load(file)
            same = found["plan"] == plan.digest and found["format"] == FORMAT
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise DataError(
                f"{folder} holds shards of other pictures, captions or settings",
                "name another folder, or delete this one",
            )
        yield


def _entries(folder: Path, plan: Plan) -> list[pa.Table | None]:
    """What is known of each shard that is whole; None for those that are not."""
    path = folder / "index.parquet"
    index = read_parquet(path) if path.is_file() else None
    if index is not None and not (
        index.schema.equals(INDEX) and index.num_rows == plan.rows.num_rows
    ):
        index = None
    return [_entries_of(folder, shard, index) for shard in plan.shards]


def _entries_of(folder: Path, shard: PlannedShard, index: pa.Table | None) -> pa.Table | None:
    part, tar = _part_path(folder, shard.name), _tar_path(folder, shard.name)
    if part.is_file():
        entries = read_parquet(part)
    elif index is not None:
        entries = index.slice(shard.start, shard.stop - shard.start)
    else:
        return None
    last = entries.slice(entries.num_rows - 1).to_pylist()[0]
    end = last["offset"] + last["num_bytes"] + 2 * tarfile.BLOCKSIZE
    size = -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return entries if tar.is_file() and tar.stat().st_size == size else None


def _write_plan(folder: Path, plan: Plan) -> None:
    """The plan's rows, a row group for each shard."""
    draft = folder / f"{_PLAN}.draft"
    with pq.ParquetWriter(draft, plan.rows.schema, compression="zstd") as writer:
        for shard in plan.shards:
            rows = plan.rows.slice(shard.start, shard.stop - shard.start)
            writer.write_table(rows, row_group_size=rows.num_rows)
    os.replace(draft, folder / _PLAN)


def _finish(folder: Path, plan: Plan, settings: ShardSettings) -> pa.Table:
    """Join the entries, say what there is, and remove what only the making needed."""
    entries = [found for found in _entries(folder, plan) if found is not None]
    assert len(entries) == len(plan.shards), "a shard that was just written is not there"
    index = pa.concat_tables(entries)
    write_parquet(folder / "index.parquet", index)
    buckets = Counter(index["bucket"].to_pylist())
    splits = Counter(index["split"].to_pylist())
    told = {
        "format": FORMAT,
        "plan": plan.digest,
        "settings": to_mapping(settings),
        "num_shards": len(plan.shards),
        "num_samples": index.num_rows,
        "splits": dict(splits),
        "buckets": dict(buckets),
        "left_out": plan.left_out,
    }
    write_whole(folder / "shards.json", _json_bytes(told))
    shutil.rmtree(folder / "parts", ignore_errors=True)
    (folder / _PLAN).unlink(missing_ok=True)
    return index


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def write_shards(
    corpus: Corpus,
    folder: Path,
    settings: ShardSettings | None = None,
    *,
    engine: str = "local",
    workers: int = 1,
    report: Report | None = None,
) -> ShardRun:
    """Write the shards of a corpus, or go on with them.

    Args:
        corpus: with the stages `buckets`, `split`, cleaning, and captions.
        folder: new, empty, or of an unfinished run with the same corpus and settings.
        settings: the defaults where None.
        engine, workers: see `petzval.data.corpus.stages.run_stage`; a shard is the unit of work.
        report: told of shards that are whole.

    Raises:
        DataError: a stage has not run, the folder holds something else, a picture is gone or has
            changed, or nothing can be written.
    """
    settings = settings or ShardSettings()
    plan = make_plan(corpus, settings)
    folder = folder.absolute()
    try:
        with _claimed(folder, plan):
            there = _entries(folder, plan)
            todo = [number for number, entries in enumerate(there) if entries is None]
            if todo:
                _write_plan(folder, plan)
            work = partial(_write_shard, folder, corpus.folder, settings.files, plan.shards)
            numbers = run_numbers(work, todo, engine, workers)
            for done, _ in enumerate(chain([None], numbers), len(there) - len(todo)):
                if report is not None:
                    report("shards", done, len(there))
            index = _finish(folder, plan, settings)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
    num_bytes = sum(_tar_path(folder, shard.name).stat().st_size for shard in plan.shards)
    return ShardRun(
        num_shards=len(plan.shards),
        num_samples=index.num_rows,
        num_written=len(todo),
        num_bytes=num_bytes,
        left_out=plan.left_out,
    )
