"""The small vocabulary of `mini`, cut from the full one to what its captions use."""

from __future__ import annotations

from pathlib import Path

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.conditioning.vocabulary import SPECIAL_TOKENS, load_ranks, prune, write_tokenizer
from petzval.data.sprites import SpriteLibrary
from petzval.data.texts import vocabulary_texts

MINI_NUM_IDS = 8192
"""Byte-pair tokens and the 21 special ones together: the rows of the encoder's embedding."""


def build_mini_tokenizer(
    data_folder: Path, out_folder: Path, *, num_ids: int = MINI_NUM_IDS
) -> PromptTokenizer:
    """Write the tokenizer folder for a corpus; the same corpus gives the same bytes.

    Args:
        data_folder: as written by `petzval data build mini`.
        out_folder: receives the three JSON files.
        num_ids: the most ids to give out, at least about 600 for the template alone.

    Raises:
        DataError: when the data cannot be read, or the vocabulary would be too small.
    """
    texts = vocabulary_texts(SpriteLibrary.open(data_folder))
    ranks = prune(load_ranks(), texts, num_ids - len(SPECIAL_TOKENS))
    write_tokenizer(ranks, out_folder)
    return PromptTokenizer(out_folder)
