"""A corpus's columns, in order of buckets or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from petzval.data.sample_table import SampleTable
from petzval.errors import DataError

SIZES = np.array([4, 9, 0, 16])


def table(buckets: list[int]) -> SampleTable:
    column = np.array(buckets)
    return SampleTable.from_columns(column, SIZES[column], np.arange(len(buckets)))


def test_an_index_in_order_needs_no_rows() -> None:
    made = table([0, 0, 1, 3, 3, 3])
    assert made.rows is None
    assert made.counts == (2, 1, 0, 3)
    assert made.image_tokens == (4, 9, 0, 16)
    assert made.num_samples == 6
    assert made.ids_in_bucket(3, np.array([0, 2])).tolist() == [3, 5]
    by_totals = SampleTable(
        counts=(2, 1, 0, 3), image_tokens=(4, 9, 0, 16), text_tokens=np.arange(6)
    )
    assert by_totals.ids_in_bucket(3, np.array([0, 2])).tolist() == [3, 5]
    assert by_totals.num_samples == 6


def test_an_index_in_any_order_gives_the_ids_of_its_rows() -> None:
    buckets = [3, 0, 3, 1, 0, 3]
    made = table(buckets)
    assert made.ids_in_bucket(3, np.arange(3)).tolist() == [0, 2, 5]
    ids, of = made.ids_and_buckets(np.arange(6))
    assert sorted(ids.tolist()) == list(range(6))
    assert [buckets[each] for each in ids] == of.tolist() == sorted(buckets)


@pytest.mark.parametrize(
    ("buckets", "image", "text", "message"),
    [
        ([0, 1], [4, 4], [1], "2 buckets, 2 image token counts and 1 text"),
        ([], [], [], "no samples"),
        ([0, -1], [4, 4], [1, 1], "sample 1 has bucket -1"),
        ([0, 0], [4, 0], [1, 1], "sample 1 has image tokens 0"),
        ([0, 0], [4, 4], [1, -3], "sample 1 has text tokens -3"),
        ([0, 1, 0], [4, 9, 6], [1, 1, 1], "bucket 0 holds pictures of"),
    ],
)
def test_columns_that_cannot_be(
    buckets: list[int], image: list[int], text: list[int], message: str
) -> None:
    columns: list[Any] = [np.array(each, dtype=np.int64) for each in (buckets, image, text)]
    with pytest.raises(DataError, match=message):
        SampleTable.from_columns(*columns)
