"""Captions as features of the text encoder that ships inside, made once and kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from petzval.conditioning.encoder import PromptEncoder
from petzval.conditioning.template import SUFFIX_LENGTH
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.inference.variants import locate
from petzval.models.gpt_oss import GptOssEncoder
from petzval.weights.checkpoint import Checkpoint

NUM_LAYERS = 4


class Features:
    """Every layer's features of the captions that were asked for so far.

    The fixed suffix of the chat template, 22 tokens that are the same behind every prompt, is cut
    off: the words of a miniature caption are fewer than that, and a run would be half as fast.
    """

    def __init__(self) -> None:
        checkpoint = Checkpoint.open(locate("mini").folder)
        self.tokenizer = PromptTokenizer(checkpoint.tokenizer_folder)
        self.encoder: GptOssEncoder = checkpoint.load_encoder(torch.float32)
        self.identity = checkpoint.identity[:16]
        self._prompts = PromptEncoder(
            self.encoder, self.tokenizer, checkpoint_id=checkpoint.identity, cache_size=0
        )
        self._of_ids: dict[tuple[int, ...], Tensor] = {}
        self._known: set[str] = set()

    @property
    def width(self) -> int:
        """Of the encoder's hidden states."""
        return self.encoder.config.hidden_size

    def learn(self, captions: Iterable[str]) -> None:
        """Encode the captions that are new, those of one length together."""
        new = sorted(set(captions) - self._known)
        for caption, features in zip(new, self._prompts.encode(new), strict=True):
            ids = self.tokenizer.encode(caption).text_ids[:-SUFFIX_LENGTH]
            self._of_ids[ids] = torch.stack(features.layers)[:, :-SUFFIX_LENGTH]
        self._known.update(new)

    def of_rows(self, rows: Sequence[tuple[int, ...]], layers: Sequence[int]) -> list[Tensor]:
        """Padded features [B, T, width] of each chosen layer; a row may be empty."""
        width = max((len(row) for row in rows), default=0)
        padded = torch.zeros(NUM_LAYERS, len(rows), width, self.width)
        for number, row in enumerate(rows):
            if row:
                padded[:, number, : len(row)] = self._of_ids[row]
        return [padded[layer] for layer in layers]

    def rows(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each caption, without the suffix."""
        return [self.tokenizer.encode(text).text_ids[:-SUFFIX_LENGTH] for text in captions]
