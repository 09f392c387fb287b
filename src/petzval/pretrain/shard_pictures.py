"""The training side of a folder of shards, as the objective asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petzval.conditioning.template import SUFFIX_LENGTH
from petzval.config import read_json
from petzval.data.corpus.shard_reader import ShardReader
from petzval.data.corpus.split import TRAIN
from petzval.data.sample_table import SampleTable
from petzval.errors import DataError, ResolutionError
from petzval.pretrain.captioned_folder import cover
from petzval.resolution import Resolution

TOKENS_PER_WORD = 1.35
"""Of an English caption, about. A row of many samples comes out near its planned length."""


class ShardPictures:
    """Pictures and captions that are trained on, by the place of their row among those.

    Args:
        folder: written by `petzval data shard`.
        bases: families of sizes that they must be of; () takes any.
        square: every picture is scaled to cover this square and cropped to it in the middle.
        max_tokens: text tokens of a sample, at most.

    Raises:
        DataError: no shards, shards of another form, of other sizes, or nothing to train on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bases: Sequence[int] = (),
        square: int | None = None,
        max_tokens: int = 415,
    ) -> None:
        self._reader = ShardReader(folder)
        self.identity = _identity(folder)
        """Names these shards: what they were made from, and how."""
        self.bases = _bases(self._reader.index, folder, bases)
        index: Any = self._reader.index
        is_train = np.asarray(index["split"].to_numpy()) == TRAIN
        self._places = np.flatnonzero(is_train)
        self._held_out = np.flatnonzero(~is_train)
        if not self._places.size:
            raise DataError(
                f"{folder} has no samples to train on ({len(self._held_out):,} are held out)",
                "make shards with a smaller --held-out, or of a larger corpus",
            )
        self._square = None if square is None else Resolution(square, square)
        heights, widths, words = (
            np.asarray(index[name].to_numpy())[self._places]
            for name in ("height", "width", "caption_length")
        )
        self.sizes, buckets = self._buckets(folder, heights, widths)
        tokens = np.array([size.num_tokens for size in self.sizes])
        text = np.ceil(words * TOKENS_PER_WORD).astype(np.int32) + SUFFIX_LENGTH
        self.table = SampleTable.from_columns(
            buckets, tokens[buckets], np.minimum(text, max_tokens)
        )

    def _buckets(
        self, folder: Path, heights: NDArray[Any], widths: NDArray[Any]
    ) -> tuple[tuple[Resolution, ...], NDArray[np.int64]]:
        """The sizes that there are, and which of them each sample has."""
        if self._square is not None:
            return (self._square,), np.zeros(len(heights), dtype=np.int64)
        pairs, buckets = np.unique(np.stack((heights, widths), 1), axis=0, return_inverse=True)
        try:
            sizes = tuple(Resolution(int(height), int(width)) for height, width in pairs)
        except ResolutionError as error:
            raise DataError(
                f"{folder}: the index has a size off the grid: {error.message}",
                "make the shards again: petzval data shard",
            ) from error
        return sizes, buckets.astype(np.int64).reshape(-1)

    def sample(self, number: int) -> tuple[NDArray[np.uint8], str]:
        """RGB [height, width, 3] at its bucket's size, and the caption.

        Raises:
            DataError: its shard is missing or damaged.
        """
        found = self._reader[int(self._places[number])]
        pixels = found.pixels
        if self._square is not None:
            pixels = cover(pixels, self._square)
        return np.array(pixels), found.caption

    def caption(self, number: int) -> str:
        """The caption alone.

        Raises:
            DataError: its shard is missing or damaged.
        """
        return self._reader.caption(int(self._places[number]))

    def name(self, number: int) -> str:
        """Hash of the picture."""
        name: str = self._reader.index["id"][int(self._places[number])].as_py()
        return name

    def prompts(self, count: int) -> list[str]:
        """Captions to draw from: of held-out pictures, and of others where those are too few."""
        places = [*self._held_out[:count], *self._places[:count]][:count]
        return [self._reader.caption(int(place)) for place in places]

    @property
    def commonest(self) -> Resolution:
        """The size that most samples have."""
        return self.sizes[int(np.argmax(self.table.counts))]


def _identity(folder: Path) -> str:
    path = folder / "shards.json"
    found = read_json(path) if path.is_file() else None
    plan = found.get("plan") if isinstance(found, dict) else None
    if not isinstance(plan, str):
        raise DataError(
            f"{folder}: shards of another form, {path.name} does not say what they were made from",
            "make them with petzval data shard",
        )
    return plan


def _bases(index: Any, folder: Path, wanted: Sequence[int]) -> tuple[int, ...]:
    """Families of sizes in the shards."""
    names: list[str] = index["bucket"].unique().to_pylist()
    heads = {name.partition("/")[0] for name in names}
    if not all(head.isdecimal() for head in heads):
        raise DataError(
            f"{folder}: the index names a bucket {sorted(heads)[0][:40]!r}, which has no base size",
            "make the shards again: petzval data shard",
        )
    found = sorted(int(head) for head in heads)
    if wanted and not set(found) <= set(wanted):
        sizes = ", ".join(str(base) for base in found)
        bases = ",".join(str(base) for base in wanted)
        raise DataError(
            f"{folder} holds pictures of base size {sizes}; this recipe takes {bases}",
            f"make shards of its sizes: petzval data shard CORPUS --bases {bases}",
        )
    return tuple(found)
