"""Several samples in one row of tokens: where each begins, and which values are its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

LENGTH_STEP = 1024
"""The longest length is rounded up to a multiple of this: it is part of a compiled graph."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences:
    """Lengths of samples whose queries, and whose keys, lie one behind the other.

    Attributes:
        query_lengths, key_lengths: of each sample, on the host, for loops.
        query_offsets, key_offsets: int32 [samples + 1], sums of the lengths before each sample, on
            the device, for kernels.
        longest_query, longest_key: bounds for kernels, rounded up.
    """

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    query_offsets: Tensor
    key_offsets: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(
        cls,
        query_lengths: Sequence[int],
        key_lengths: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> Sequences:
        """From the lengths of each sample; every length is at least 1."""
        if len(query_lengths) != len(key_lengths) or min((*query_lengths, *key_lengths)) < 1:
            raise ValueError("every sample needs at least one query and one key")
        return cls(
            query_lengths=tuple(query_lengths),
            key_lengths=tuple(key_lengths),
            query_offsets=_offsets(query_lengths, device),
            key_offsets=_offsets(key_lengths, device),
            longest_query=_rounded(max(query_lengths)),
            longest_key=_rounded(max(key_lengths)),
        )

    def each(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Query, key and value of one sample after the other, [1, tokens, heads, d]."""
        queries = query[None].split(list(self.query_lengths), dim=1)
        keys = key[None].split(list(self.key_lengths), dim=1)
        values = value[None].split(list(self.key_lengths), dim=1)
        return zip(queries, keys, values, strict=True)

    @cached_property
    def block_mask(self) -> BlockMask:
        """flex_attention's form of "a query sees the keys of its own sample"; built once."""
        query_sample, key_sample = _samples(self.query_offsets), _samples(self.key_offsets)
        # A lambda: torch counts the parameters, which the tests' shape checks would hide.
        return create_block_mask(
            lambda batch, head, query, key: query_sample[query] == key_sample[key],
            None,
            None,
            query_sample.shape[0],
            key_sample.shape[0],
            device=query_sample.device,
        )


def _offsets(lengths: Sequence[int], device: torch.device | str) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _rounded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def _samples(offsets: Tensor) -> Tensor:
    """[tokens] which sample each token belongs to."""
    numbers = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return numbers.repeat_interleave(offsets.diff())


class FusedStream(NamedTuple):
    """One stream of the joint attention, before it is split; a tuple, which compilers know.

    Attributes:
        fused: [batch, tokens, 3 heads d], the query's, key's and value's columns one run each.
        query_weight, key_weight: [d] of the norms over each head.
    """

    fused: Tensor
    query_weight: Tensor
    key_weight: Tensor

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as they were projected, each [batch, tokens, heads, d]."""
        split: Tensor = self.fused.unflatten(-1, (3, -1, self.query_weight.shape[0]))
        return split[:, :, 0], split[:, :, 1], split[:, :, 2]


def spread(values: Tensor, rows: Tensor | None) -> Tensor:
    """Values of samples [samples, width] as what broadcasts over tokens [batch, tokens, width].

    Args:
        rows: [tokens] the sample of each token of a packed row; None where each row of the batch is
            a sample (or where one sample's values serve all).
    """
    return values[:, None] if rows is None else values.index_select(0, rows)
