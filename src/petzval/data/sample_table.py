"""What a sampler knows of a corpus: for each sample a bucket, image tokens and text tokens.

Samples of one bucket have one size of picture. A sample's id is its row in the corpus's index;
inside the sampler it is also the n-th of its bucket. Where the index is sorted by bucket, as it is
when every shard holds one bucket, the two are related by an addition and nothing is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from petzval.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleTable:
    """The columns of a corpus; build one with `from_columns`.

    An index that is sorted by bucket can also be given by its totals and its text lengths alone,
    which may be a memory-mapped array: nothing of the size of the corpus is then built.

    Attributes:
        counts: samples of each bucket.
        image_tokens: tokens of one picture of each bucket; 0 for a bucket without samples.
        text_tokens: [samples] text tokens of each sample, by id.
        rows: [samples] ids in order of buckets; None where that is 0, 1, 2 …
    """

    counts: tuple[int, ...]
    image_tokens: tuple[int, ...]
    text_tokens: NDArray[np.integer]
    rows: NDArray[np.int64] | None = None
    _starts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        starts = np.concatenate(([0], np.cumsum(self.counts))).astype(np.int64)
        object.__setattr__(self, "_starts", starts)

    @classmethod
    def from_columns(
        cls,
        buckets: NDArray[np.integer],
        image_tokens: NDArray[np.integer],
        text_tokens: NDArray[np.integer],
    ) -> SampleTable:
        """The table of an index, one entry a sample in each column.

        Raises:
            DataError: columns of different length, no samples, a number that cannot be, or two
                sizes of picture in one bucket.
        """
        _check_columns(buckets, image_tokens, text_tokens)
        num_buckets = int(buckets.max()) + 1
        counts = np.bincount(buckets, minlength=num_buckets)
        in_order = bool((np.diff(buckets) >= 0).all())
        rows = None if in_order else np.argsort(buckets, kind="stable").astype(np.int64)
        sizes = np.zeros(num_buckets, dtype=np.int64)
        sizes[buckets] = image_tokens  # any sample of the bucket; the others must agree
        different = np.flatnonzero(sizes[buckets] != image_tokens)
        if different.size:
            sample = int(different[0])
            raise DataError(
                f"bucket {int(buckets[sample])} holds pictures of {int(image_tokens[sample])} "
                f"and of {int(sizes[buckets[sample]])} tokens",
                "a bucket is one size of picture; give each size a bucket of its own",
            )
        return cls(
            counts=tuple(int(count) for count in counts),
            image_tokens=tuple(int(size) for size in sizes),
            text_tokens=text_tokens,
            rows=rows,
        )

    @property
    def num_samples(self) -> int:
        """Samples of all buckets."""
        return int(self._starts[-1])

    def ids_in_bucket(self, bucket: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of the samples at these places of one bucket."""
        return self._ids(places + self._starts[bucket])

    def ids_and_buckets(
        self, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and buckets of samples by their place among all, buckets one behind the other."""
        buckets = np.searchsorted(self._starts, places, side="right").astype(np.int64) - 1
        return self._ids(places), buckets

    def _ids(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places if self.rows is None else self.rows[places]


def _check_columns(
    buckets: NDArray[np.integer],
    image_tokens: NDArray[np.integer],
    text_tokens: NDArray[np.integer],
) -> None:
    lengths = {len(buckets), len(image_tokens), len(text_tokens)}
    if len(lengths) > 1:
        raise DataError(
            f"the corpus's columns have {len(buckets)} buckets, {len(image_tokens)} image token "
            f"counts and {len(text_tokens)} text token counts",
            "every sample needs all three; build the index again",
        )
    if lengths == {0}:
        raise DataError("the corpus has no samples", "check the filters of the pipeline before it")
    columns = (
        ("bucket", buckets, 0),
        ("image tokens", image_tokens, 1),
        ("text tokens", text_tokens, 0),
    )
    for name, column, least in columns:
        if int(column.min()) < least:
            sample = int(column.argmin())
            raise DataError(
                f"sample {sample} has {name} {int(column[sample])}; at least {least} is possible",
                "build the index again",
            )
