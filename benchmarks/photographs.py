"""Pictures for cases about corpora: like photographs in size and detail, drawn from a seed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from petzval.data.corpus.manifest import Corpus

HEIGHT, WIDTH = 768, 1024
CAPTION = (
    "A wide field of soft colours that run into each other, seen from above in the even light of a"
    " grey morning. Fine grain lies over the whole picture. Towards the left edge the colours are"
    " warmer, and a paler patch is to be seen a little below the middle. Nothing in it is sharp."
)
"""Of every photograph: about as long as a sentence or three of a dense caption."""


def photograph(seed: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A JPEG with the detail of a photograph: coarse shapes and fine grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grained = smooth + rng.normal(0, 6, (height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(grained, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def cleaned_corpus(folder: Path, count: int, height: int = HEIGHT, width: int = WIDTH) -> Corpus:
    """A corpus of so many photographs with captions beside them, none of them dropped."""
    from petzval.data.corpus.filters import Band, BandFilter, Decodes, Measure
    from petzval.data.corpus.importing import import_source
    from petzval.data.corpus.manifest import Corpus
    from petzval.data.corpus.sources import FolderSource
    from petzval.data.corpus.stages import run_stage

    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for number in range(count):
        (pictures / f"{number:05d}.jpg").write_bytes(photograph(number, height, width))
        told = {"caption": CAPTION, "licence": "CC0-1.0"}
        (pictures / f"{number:05d}.json").write_text(json.dumps(told), encoding="utf-8")
    corpus = Corpus.create(folder / "corpus", "photographs")
    import_source(corpus, FolderSource(pictures))
    for stage in (Measure(), Decodes(), BandFilter(name="area", settings=Band(minimum=9.0))):
        run_stage(corpus, stage)
    return corpus
