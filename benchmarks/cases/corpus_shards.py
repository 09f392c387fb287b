"""Shards: what writing them costs beside the pictures themselves, and reading them in any order."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.case import Case, Prepared, Work

if TYPE_CHECKING:
    from petzval.data.corpus.manifest import Corpus

NUM_PICTURES = 32


def _ready(folder: Path, num_pictures: int, height: int, width: int) -> Corpus:
    """A corpus with every column that shards read."""
    import pyarrow as pa

    from benchmarks.photographs import cleaned_corpus
    from petzval.data.corpus.buckets import Buckets, BucketSettings
    from petzval.data.corpus.split import Split
    from petzval.data.corpus.stages import run_corpus_stage, run_stage

    corpus = cleaned_corpus(folder, num_pictures, height, width)
    for part in corpus.parts():
        ids: list[str] = corpus.read(part)["id"].to_pylist()
        columns = {
            "score": pa.array([None] * len(ids), pa.float64()),
            "keep": pa.array([True] * len(ids), pa.bool_()),
            "reason": pa.array([""] * len(ids), pa.string()),
            "cluster": pa.array(ids, pa.string()),
        }
        # Every picture differs, so that no model has to look for duplicates.
        corpus.write_columns("duplicates", part, pa.table(columns), {"stage": "duplicates"})
    base = 512 if min(height, width) >= 512 else 128
    run_stage(corpus, Buckets(settings=BucketSettings(bases=(base,))))
    run_corpus_stage(corpus, Split())
    return corpus


def prepare_writing(
    num_pictures: int = NUM_PICTURES, height: int = 768, width: int = 1024
) -> Prepared:
    """Pictures cut to their bucket and stored: by Pillow alone, then as shards with an index."""
    from petzval.data.corpus.shard_plan import ShardSettings
    from petzval.data.corpus.shards import write_shards

    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    corpus = _ready(folder, num_pictures, height, width)
    files = sorted((folder / "pictures").glob("*.jpg"))
    settings = ShardSettings(captions="source")
    first = write_shards(corpus, folder / "first", settings)
    assert first.num_samples == num_pictures
    row: dict[str, Any] = _index(folder / "first")[0]

    def plain() -> None:
        for file in files:
            with Image.open(file) as image:
                fitted = ImageOps.fit(
                    image.convert("RGB"), (row["width"], row["height"]), Image.Resampling.LANCZOS
                )
            fitted.save(io.BytesIO(), "JPEG", quality=95, subsampling=0)

    def written() -> None:
        shutil.rmtree(folder / "again", ignore_errors=True)
        write_shards(corpus, folder / "again", settings)

    return Prepared(
        ways={
            "Pillow: open, cut to size, save": plain,
            "+ hash, limits, orientation, profile, record, tar on the disk, index": written,
        },
        dtype="uint8",
        facts={"pictures": num_pictures, "MB of shards": round(first.num_bytes / 1e6, 3)},
    )


def prepare_reading(
    num_pictures: int = NUM_PICTURES, height: int = 768, width: int = 1024
) -> Prepared:
    """All samples once, decoded: shard by shard from the front, then one by one in random order."""
    from petzval.data.corpus.shard_plan import ShardSettings
    from petzval.data.corpus.shard_reader import ShardReader
    from petzval.data.corpus.shards import write_shards

    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    corpus = _ready(folder, num_pictures, height, width)
    run = write_shards(corpus, folder / "shards", ShardSettings(captions="source"))
    shards = sorted((folder / "shards").rglob("*.tar"))
    reader = ShardReader(folder / "shards")
    order = list(range(len(reader)))
    random.Random(0).shuffle(order)

    def plain() -> None:
        num_read = 0
        for shard in shards:
            with tarfile.open(shard) as tar:
                for member in tar:
                    contents = tar.extractfile(member)
                    assert contents is not None
                    num_read += _decoded(member.name, contents.read())
        assert num_read == num_pictures

    def webdataset() -> None:
        library: Any = import_module("webdataset")
        num_read = 0
        for shard in shards:
            for sample in library.WebDataset(str(shard), shardshuffle=False):
                for name, data in sample.items():
                    if not name.startswith("__"):
                        num_read += _decoded(f".{name}", data)
        assert num_read == num_pictures

    def seeking() -> None:
        for place in order:
            sample = reader[place]
            assert sample.caption and sample.pixels.shape[2] == 3

    ways: dict[str, Work] = {"tarfile and Pillow, in the tar's order": plain}
    if find_spec("webdataset") is not None:
        ways["webdataset and Pillow, in the tar's order"] = webdataset
    ways["ShardReader, one seek a sample, in random order"] = seeking
    return Prepared(
        ways=ways,
        dtype="uint8",
        facts={"pictures": num_pictures, "MB of shards": round(run.num_bytes / 1e6, 3)},
    )


def _index(shards: Path) -> list[dict[str, Any]]:
    from petzval.data.corpus.manifest import read_parquet

    return read_parquet(shards / "index.parquet").to_pylist()


def _decoded(name: str, data: bytes) -> int:
    """1 for a picture, which is decoded; 0 for anything else, which is parsed."""
    if name.endswith(".jpg"):
        with Image.open(io.BytesIO(data)) as image:
            return int(np.asarray(image.convert("RGB")).ndim == 3)
    if name.endswith(".json"):
        json.loads(data)
    else:
        data.decode()
    return 0


CASES = (
    Case(
        name="write-shards",
        title=f"{NUM_PICTURES} JPEGs of 1024 x 768 into shards of 512²-buckets, on one core",
        why="what is not scaling and JPEG (hashes, limits, records, tars, index) must cost little "
        "beside them",
        prepare=prepare_writing,
        rounds=5,
        max_seconds=4.0,
        threads=1,
    ),
    Case(
        name="read-shards",
        title=f"{NUM_PICTURES} samples out of shards, decoded, on one core",
        why="training draws samples in an order of its own: reading them one by one must keep pace "
        "with reading the tars from front to back",
        prepare=prepare_reading,
        rounds=7,
        max_seconds=2.0,
        threads=1,
    ),
)
