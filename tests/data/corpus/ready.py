"""A small corpus with every column that shards and cards read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from petzval.data.corpus.buckets import Buckets, BucketSettings
from petzval.data.corpus.captioner import MetadataCaptioner
from petzval.data.corpus.captions import caption_corpus
from petzval.data.corpus.filters import Band, BandFilter, Decodes, Measure
from petzval.data.corpus.importing import import_source
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.sources import FolderSource
from petzval.data.corpus.split import Split, SplitSettings
from petzval.data.corpus.stages import run_corpus_stage, run_stage

SIZES = ((150, 150), (120, 260), (260, 130), (150, 140))
"""(height, width), in turn."""


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colours, every number another picture."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def write_pictures(folder: Path, count: int) -> None:
    """Pictures with captions and licences beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, SIZES[number % len(SIZES)]).save(folder / f"{number:03d}.png")
        told = {
            "caption": f"Colours that run into each other, number {number}. " * (1 + number % 3),
            "licence": ("CC0-1.0", "CC-BY-4.0")[number % 2],
            "number": number,
        }
        (folder / f"{number:03d}.json").write_text(json.dumps(told))


def raw_corpus(folder: Path, count: int, *, rows_per_part: int = 5) -> Corpus:
    """Imported, and nothing else."""
    write_pictures(folder / "pictures", count)
    corpus = Corpus.create(folder / "corpus", "colours", rows_per_part=rows_per_part)
    import_source(corpus, FolderSource(folder / "pictures"))
    return corpus


def write_duplicates(corpus: Corpus, clusters: Sequence[Sequence[int]] = ()) -> None:
    """What `duplicates` would write, without the model: clusters of picture numbers, all kept."""
    rows = [row for part in corpus.parts() for row in corpus.read(part).to_pylist()]
    by_number = {int(Path(row["path"]).stem): row["id"] for row in rows}
    cluster_of = {by_number[n]: by_number[cluster[-1]] for cluster in clusters for n in cluster}
    for part in corpus.parts():
        ids: list[str] = corpus.read(part)["id"].to_pylist()
        table = pa.table(
            {
                "score": pa.array([None] * len(ids), pa.float64()),
                "keep": pa.array([True] * len(ids), pa.bool_()),
                "reason": pa.array([""] * len(ids), pa.string()),
                "cluster": pa.array([cluster_of.get(each, each) for each in ids], pa.string()),
            }
        )
        corpus.write_columns("duplicates", part, table, {"stage": "duplicates"})


def ready_corpus(
    folder: Path,
    count: int,
    *,
    clusters: Sequence[Sequence[int]] = (),
    share: float = 0.3,
    max_area: float | None = None,
) -> Corpus:
    """Cleaned, with buckets of 128 pixels, captions of the import, and a split."""
    corpus = raw_corpus(folder, count)
    run_stage(corpus, Measure())
    run_stage(corpus, Decodes())
    run_stage(corpus, BandFilter(name="area", settings=Band(minimum=64.0**2, maximum=max_area)))
    write_duplicates(corpus, clusters)
    run_stage(corpus, Buckets(settings=BucketSettings(bases=(128,))))
    run_corpus_stage(corpus, Split(settings=SplitSettings(share=share)))
    caption_corpus(corpus, MetadataCaptioner())
    return corpus


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
