"""Cleaning a corpus: what decoding with care and measuring cost beside decoding alone."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.case import Case, Prepared
from benchmarks.photographs import HEIGHT, WIDTH, photograph

NUM_PICTURES = 48
IMG2DATASET_PER_CORE = 1350 / 16
"""Pictures a second: img2dataset's README gives 1,350 on a node of 16 cores, with download and
resizing. An outside mark, from other pictures on another machine."""


def _prepare() -> Prepared:
    from petzval.data.corpus.filters import Measure
    from petzval.data.corpus.manifest import base_table
    from petzval.data.corpus.pictures import PictureReader

    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    rows: list[dict[str, Any]] = []
    for number in range(NUM_PICTURES):
        data = photograph(number)
        (folder / f"{number}.jpg").write_bytes(data)
        rows.append(
            {
                "id": hashlib.sha256(data).hexdigest(), "source": "", "path": f"{number}.jpg",
                "member": "", "offset": 0, "num_bytes": len(data), "caption": "", "licence": "",
                "metadata": "{}",
            }
        )  # fmt: skip
    table, reader, stage = base_table(rows), PictureReader(folder), Measure()

    def plain() -> None:
        for row in rows:
            with Image.open(folder / row["path"]) as image:
                np.asarray(image.convert("RGB"))

    def careful() -> None:
        for row in rows:
            reader.load(row)

    def measured() -> None:
        stage.run(table, reader)

    return Prepared(
        ways={
            "plain Pillow": plain,
            "+ hash, limits, orientation, flags": careful,
            "+ clarity, entropy, luminance": measured,
        },
        dtype="uint8",
        facts={
            "pictures": NUM_PICTURES,
            "img2dataset's pictures a second on one core": IMG2DATASET_PER_CORE,
        },
    )


CASES = (
    Case(
        name="clean-pictures",
        title=f"decode and measure {NUM_PICTURES} JPEGs of {WIDTH} x {HEIGHT} on one core",
        why="the analytic steps must keep pace with the downloads that feed them: the limit is "
        "img2dataset's published 1,350 pictures a second on 16 cores",
        prepare=_prepare,
        rounds=7,
        max_seconds=round(NUM_PICTURES / IMG2DATASET_PER_CORE, 3),
        threads=1,
    ),
)
