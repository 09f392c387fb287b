"""Prompts as features: the hidden states that the denoiser reads.

Three savings, none of which changes the mathematics: the template's prefix is read once per date
and its keys and values are kept; prompts of the same length run as one batch, so nothing is ever
padded; and features of recent prompts are kept.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from petzval.conditioning import template
from petzval.conditioning.tokenizer import DEFAULT_MAX_TOKENS, PromptTokenizer, PromptTokens
from petzval.errors import CheckpointError
from petzval.models.gpt_oss import GptOssEncoder, PrefixCache

DEFAULT_CACHE_BYTES = 256 * 2**20
"""About 200 prompts of the full-size model, in bfloat16."""

DEFAULT_MAX_BATCH = 16
"""Prompts of one length that run through the encoder together."""

_MAX_DATES = 8


class PromptTruncatedWarning(UserWarning):
    """A prompt was longer than the room there is; the message says by how much."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PromptFeatures:
    """What one prompt gives the denoiser; shared with a cache, so never to be changed in place.

    Attributes:
        layers: per selected layer the hidden states of prompt and suffix, never padded.
        truncated: whether tokens were dropped for want of room.
        num_dropped: how many.
    """

    layers: tuple[Float[Tensor, "text_tokens encoder_width"], ...]
    truncated: bool = False
    num_dropped: int = 0

    @property
    def num_tokens(self) -> int:
        """Text tokens; 22 for a blank prompt, 0 for `PromptEncoder.empty_features`."""
        return self.layers[0].shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory of the features."""
        return sum(layer.numel() * layer.element_size() for layer in self.layers)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setting:
    """Everything but the prompt that features depend on."""

    checkpoint_id: str
    date: str
    truncate: str
    markers: str
    max_tokens: int


class FeatureCache:
    """The most recently used features, up to a number of bytes; for several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._most = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[tuple[_Setting, str], PromptFeatures] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[_Setting, str]) -> PromptFeatures | None:
        """The features under this key, now the most recently used."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: tuple[_Setting, str], features: PromptFeatures) -> None:
        """Keep features, and forget the least recently used that no longer fit."""
        with self._lock:
            if key in self._entries or features.num_bytes > self.max_bytes:
                return
            self._entries[key] = features
            self.num_bytes += features.num_bytes
            self._forget()

    def limit(self, max_bytes: int | None) -> None:
        """From here on, keep at most so many bytes, and never more than at first; None is those."""
        with self._lock:
            self.max_bytes = self._most if max_bytes is None else min(max_bytes, self._most)
            self._forget()

    def _forget(self) -> None:
        while self.num_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0


class PromptEncoder:
    """A text encoder and its tokenizer, as one function from prompts to features.

    Args:
        encoder: the language model, in the dtype and on the device it is to run in.
        tokenizer: the checkpoint's.
        checkpoint_id: identity of the weights; features are cached under it.
        date: what the template prints, `YYYY-MM-DD` or `today` (asked anew at every call).
        truncate, markers, max_tokens: as in `PromptTokenizer.encode`.
        cache_size: bytes of features to keep; 0 keeps none.
        max_batch: the most prompts in one run of the encoder.
        use_prefix_cache: False runs the 97 prefix tokens with every prompt, the slow truth.
        bring: called before the encoder runs, where its weights come and go.

    Raises:
        CheckpointError: when the tokenizer has ids that the encoder has no embedding for.
    """

    def __init__(
        self,
        encoder: GptOssEncoder,
        tokenizer: PromptTokenizer,
        *,
        checkpoint_id: str,
        date: str = template.DEFAULT_DATE,
        truncate: str = "keep_tail",
        markers: str = "neutralise",
        max_tokens: int = DEFAULT_MAX_TOKENS,
        cache_size: int = DEFAULT_CACHE_BYTES,
        max_batch: int = DEFAULT_MAX_BATCH,
        use_prefix_cache: bool = True,
        bring: Callable[[], object] | None = None,
    ) -> None:
        num_rows = encoder.config.vocab_size
        if tokenizer.num_ids > num_rows:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.num_ids} ids, the text encoder embeds {num_rows}",
                "use the tokenizer and the text encoder of one checkpoint",
            )
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.cache = FeatureCache(cache_size)
        self.max_batch = max_batch
        self.use_prefix_cache = use_prefix_cache
        self.bring = bring
        self._setting = _Setting(
            checkpoint_id=checkpoint_id,
            date=date,
            truncate=truncate,
            markers=markers,
            max_tokens=max_tokens,
        )
        self._prefixes: OrderedDict[tuple[str, torch.device], PrefixCache] = OrderedDict()

    def empty_features(self) -> PromptFeatures:
        """No text at all: the unconditional branch of a blank negative prompt."""
        table = self.encoder.model.embed_tokens.weight
        num_layers = len(self.encoder.selected_layers)
        return PromptFeatures(layers=(table.new_empty(0, table.shape[1]),) * num_layers)

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        *,
        date: str | None = None,
        truncate: str | None = None,
        markers: str | None = None,
        max_tokens: int | None = None,
    ) -> list[PromptFeatures]:
        """Features of each prompt, in order. Settings that are given replace the encoder's own.

        Warns:
            PromptTruncatedWarning: once for each prompt that had to be cut.

        Raises:
            RequestError: when a setting is out of range.
        """
        setting = replace(
            self._setting,
            date=template.resolve_date(self._setting.date if date is None else date),
            truncate=self._setting.truncate if truncate is None else truncate,
            markers=self._setting.markers if markers is None else markers,
            max_tokens=self._setting.max_tokens if max_tokens is None else max_tokens,
        )
        known: dict[str, PromptFeatures] = {}
        missing: dict[str, PromptTokens] = {}
        for prompt in dict.fromkeys(prompts):
            features = self.cache.get((setting, prompt))
            if features is None:
                missing[prompt] = self._tokens(prompt, setting)
            else:
                known[prompt] = features
        known |= self._run(missing, setting.date)
        for prompt, features in known.items():
            self.cache.put((setting, prompt), features)
            if features.truncated:
                _warn(features.num_dropped, setting)
        return [known[prompt] for prompt in prompts]

    def _tokens(self, prompt: str, setting: _Setting) -> PromptTokens:
        return self.tokenizer.encode(
            prompt,
            date=setting.date,
            truncate=setting.truncate,
            markers=setting.markers,
            max_tokens=setting.max_tokens,
        )

    def _run(self, tokens: dict[str, PromptTokens], date: str) -> dict[str, PromptFeatures]:
        """Encode prompts that are not cached, those of one length together."""
        if tokens and self.bring is not None:
            self.bring()
        by_length: dict[int, list[str]] = {}
        for prompt, each in tokens.items():
            by_length.setdefault(len(each.text_ids), []).append(prompt)
        features: dict[str, PromptFeatures] = {}
        for length, group in by_length.items():
            for start in range(0, len(group), self.max_batch):
                batch = group[start : start + self.max_batch]
                layers = self._layers([tokens[prompt] for prompt in batch], date) if length else []
                for i, prompt in enumerate(batch):
                    features[prompt] = PromptFeatures(
                        # A copy, since a view would keep the whole batch in memory.
                        layers=tuple(layer[i].clone() for layer in layers)
                        or self.empty_features().layers,
                        truncated=tokens[prompt].truncated,
                        num_dropped=tokens[prompt].num_dropped,
                    )
        return features

    def _layers(self, batch: Sequence[PromptTokens], date: str) -> list[Tensor]:
        """Hidden states [B, T, D] per selected layer for token lists of equal length."""
        device = self.encoder.model.embed_tokens.weight.device
        if self.use_prefix_cache:
            ids = torch.tensor([each.text_ids for each in batch], device=device)
            return self.encoder(ids, prefix=self._prefix(date))
        ids = torch.tensor([each.ids for each in batch], device=device)
        return [layer[:, template.PREFIX_LENGTH :] for layer in self.encoder(ids)]

    def _prefix(self, date: str) -> PrefixCache:
        device = self.encoder.model.embed_tokens.weight.device
        key = (date, device)  # the encoder may have moved
        if key not in self._prefixes:
            ids = torch.tensor([self.tokenizer.prefix(date)], device=device)
            self._prefixes[key] = self.encoder.encode_prefix(ids)
            if len(self._prefixes) > _MAX_DATES:
                self._prefixes.popitem(last=False)
        return self._prefixes[key]


def _warn(num_dropped: int, setting: _Setting) -> None:
    lost = "the prompt's end" if setting.truncate == "keep_tail" else "the conversation's end"
    warnings.warn(
        f"a prompt is {num_dropped} tokens too long for the limit of {setting.max_tokens} "
        f"(the template takes {template.PREFIX_LENGTH + template.SUFFIX_LENGTH} of it); "
        f"{lost} was dropped",
        PromptTruncatedWarning,
        stacklevel=3,
    )
