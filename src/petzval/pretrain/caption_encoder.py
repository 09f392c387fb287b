"""Captions as features: the frozen text encoder of a training, behind the template's prefix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from petzval.conditioning.template import DEFAULT_DATE, PREFIX_LENGTH
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.models.gpt_oss import GptOssEncoder, PrefixCache
from petzval.pretrain.windows import pad


class CaptionEncoder:
    """A frozen encoder and its tokenizer. The prefix is read once; its keys and values are kept."""

    def __init__(self, encoder: GptOssEncoder, tokenizer: PromptTokenizer) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self._prefix: PrefixCache | None = None

    def ids(self, caption: str, max_tokens: int) -> tuple[int, ...]:
        """Ids of a caption and the suffix, at most so many."""
        return self.tokenizer.encode(caption, max_tokens=max_tokens + PREFIX_LENGTH).text_ids

    def pad(self, rows: Sequence[Sequence[int]], *, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """Rows of ids → ids and mask [B, T]; see `windows.pad`."""
        return pad(rows, self.tokenizer.special_id("<|endoftext|>"), multiple=multiple)

    @torch.no_grad()
    def features(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Features [B, T, width] of each selected layer."""
        device = next(self.encoder.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16):
            if self._prefix is None:
                prefix = torch.tensor(self.tokenizer.prefix(DEFAULT_DATE), device=device)[None]
                self._prefix = self.encoder.encode_prefix(prefix)
            return self.encoder(ids.to(device), mask.to(device), self._prefix)
