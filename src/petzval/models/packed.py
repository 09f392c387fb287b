"""Samples of different sizes in one row of tokens: who is where.

The two streams lie one behind the other, [image tokens of all samples ; their text tokens], as the
network's weights want them. Attention wants each sample's tokens together, [image ; text] of the
first, then of the second …; `PackedLayout` holds the order that leads from one to the other,
the rotary tables of every sample's own grid, and for each token the sample whose noise level
modulates it.

A row may be padded to a fixed length. Padding is a sequence of its own behind the last sample: no
sample attends to it, it attends to none, and its output is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.kernels import dispatch
from petzval.kernels.sequences import Sequences
from petzval.models.rope import RopeTables, mmdit_rope


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedLayout:
    """Where the tokens of each sample lie; build one with `pack_layout`.

    Attributes:
        grids: (height, width) of each sample in tokens.
        text_lengths: text tokens of each sample; 0 is a sample without text.
        num_padding: image tokens behind the last sample that belong to none.
        rope: tables for [image tokens ; text tokens], each token's by its sample's grid.
        image_rows, text_rows: [tokens] number of the sample that each token belongs to; padding
            counts with the last.
        order: [tokens] for each place of the attention's row, the token of the streams.
        place: [tokens] for each token of the streams, its place in the attention's row.
        joint: queries of image and text. image_queries: queries of the image alone.
    """

    grids: tuple[tuple[int, int], ...]
    text_lengths: tuple[int, ...]
    num_padding: int
    rope: RopeTables
    image_rows: Tensor
    text_rows: Tensor
    order: Tensor
    place: Tensor
    joint: Sequences
    image_queries: Sequences

    @property
    def image_lengths(self) -> tuple[int, ...]:
        """Image tokens of each sample."""
        return tuple(height * width for height, width in self.grids)

    @property
    def num_text_tokens(self) -> int:
        """Text tokens of all samples."""
        return self.text_rows.shape[0]

    def join(self, samples: Sequence[Tensor]) -> Tensor:
        """Image tokens of each sample [tokens, channels] → one row [1, tokens, channels]."""
        if tuple(sample.shape[0] for sample in samples) != self.image_lengths:
            raise ValueError(
                f"samples of {[sample.shape[0] for sample in samples]} tokens do not lie as the "
                f"layout's {list(self.image_lengths)}"
            )
        padding = samples[0].new_zeros(self.num_padding, *samples[0].shape[1:])
        return torch.cat((*samples, padding))[None]

    def split(self, tokens: Tensor) -> list[Tensor]:
        """The inverse of `join`; padding is dropped."""
        return list(tokens[0].split([*self.image_lengths, self.num_padding]))[:-1]

    def sample_means(self, values: Tensor) -> Tensor:
        """Mean over the tokens of each sample: [1, tokens] → [samples], without the padding."""
        return torch.stack([each.mean() for each in self.split(values)])

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention within each sample.

        Args:
            query: [tokens, heads, d] in the order of the streams; image tokens alone, or both.
            key, value: [tokens, heads, d], both streams.

        Returns:
            [tokens, heads, d], in the order of the queries.
        """
        if self.num_text_tokens == 0:  # the streams' order is the attention's
            return dispatch.packed_attention(query, key, value, self.image_queries)
        key, value = key.index_select(0, self.order), value.index_select(0, self.order)
        if query.shape[0] < key.shape[0]:
            return dispatch.packed_attention(query, key, value, self.image_queries)
        query = query.index_select(0, self.order)
        out = dispatch.packed_attention(query, key, value, self.joint)
        return out.index_select(0, self.place)


def pack_layout(
    grids: Sequence[tuple[int, int]],
    text_lengths: Sequence[int],
    axes: tuple[int, ...] = (8, 28, 28),
    *,
    pad_to: int | None = None,
    device: torch.device | str = "cpu",
) -> PackedLayout:
    """The layout of samples one behind the other.

    Args:
        grids: (height, width) in tokens, of each sample.
        text_lengths: text tokens of each sample, 0 for none.
        axes: of the rotary embedding; see `mmdit_rope`.
        pad_to: image and text tokens of the whole row; None pads nothing.

    Raises:
        ValueError: no samples, columns of different length, or more tokens than `pad_to`.
    """
    if not grids or len(grids) != len(text_lengths) or min(text_lengths) < 0:
        raise ValueError(f"{len(grids)} grids and {len(text_lengths)} text lengths are no layout")
    image_lengths = [height * width for height, width in grids]
    used = sum(image_lengths) + sum(text_lengths)
    num_padding = 0 if pad_to is None else pad_to - used
    if num_padding < 0:
        raise ValueError(f"{used} tokens are more than the {pad_to} of the row")
    order = _order(image_lengths, text_lengths, num_padding)
    padding = [num_padding] if num_padding else []
    together = [a + b for a, b in zip(image_lengths, text_lengths, strict=True)]
    return PackedLayout(
        grids=tuple(grids),
        text_lengths=tuple(text_lengths),
        num_padding=num_padding,
        rope=_tables(grids, text_lengths, axes, num_padding).to(device),
        image_rows=_rows(image_lengths, num_padding).to(device),
        text_rows=_rows(text_lengths, 0).to(device),
        order=order.to(device),
        place=order.argsort().to(device),
        joint=Sequences.of([*together, *padding], [*together, *padding], device),
        image_queries=Sequences.of([*image_lengths, *padding], [*together, *padding], device),
    )


def _order(image_lengths: Sequence[int], text_lengths: Sequence[int], num_padding: int) -> Tensor:
    """Each sample's image tokens, then its text tokens; padding last."""
    image = torch.arange(sum(image_lengths) + num_padding)
    text = torch.arange(sum(text_lengths)) + image.shape[0]
    images, texts = image.split([*image_lengths, num_padding]), text.split(list(text_lengths))
    pairs = zip(images[:-1], texts, strict=True)
    return torch.cat([part for pair in pairs for part in pair] + [images[-1]])


def _rows(lengths: Sequence[int], num_padding: int) -> Tensor:
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return torch.cat((rows, torch.full((num_padding,), len(lengths) - 1)))


def _tables(
    grids: Sequence[tuple[int, int]],
    text_lengths: Sequence[int],
    axes: tuple[int, ...],
    num_padding: int,
) -> RopeTables:
    """Every sample's own tables, images first; padding is not turned."""
    tables = [mmdit_rope(g, n, axes) for g, n in zip(grids, text_lengths, strict=True)]
    still = torch.zeros(num_padding, sum(axes) // 2)
    return RopeTables(
        cos=torch.cat(
            [*(t.cos[: t.num_image_tokens] for t in tables), still + 1]
            + [t.cos[t.num_image_tokens :] for t in tables]
        ),
        sin=torch.cat(
            [*(t.sin[: t.num_image_tokens] for t in tables), still]
            + [t.sin[t.num_image_tokens :] for t in tables]
        ),
        num_image_tokens=sum(t.num_image_tokens for t in tables) + num_padding,
    )
