"""The text encoder as a language model: next token in the template, then the scene in English.

A sequence is the prompt's conversation as the denoiser's encoder will read it, with the prompt in
any language, followed by an English caption of the same scene in the assistant's final turn:

    prefix (97) | prompt <|end|>… suffix (22) | English caption <|return|>
                  weight 0.3                    weight 1

so the hidden states behind the prompt must carry its meaning, whatever its language. The prefix is
the same for the whole batch: it runs once, with its gradient, and the batch attends to its keys.
A load-balancing term keeps all experts in use (Switch Transformer, equation 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date as Date
from datetime import timedelta

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petzval.conditioning.template import DEFAULT_DATE, SUFFIX_LENGTH
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import RequestError
from petzval.models.experts import DenseExperts, MixtureOfExperts
from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder, WeightedNorm
from petzval.pretrain.scenes import SceneSource
from petzval.pretrain.windows import SortedWindows, pad
from petzval.training.objective import Loss


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelConfig:
    """Settings of the language-model objective.

    Attributes:
        batch_size: sequences a step.
        prompt_weight: of next-token losses inside the prompt; the final turn has 1.
        balance_weight: of the load-balancing term.
        random_date_share: of the steps whose template shows another date than the default.
    """

    batch_size: int = 32
    steps_per_window: int = 8
    prompt_weight: float = 0.3
    balance_weight: float = 0.01
    random_date_share: float = 0.5
    max_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One conversation behind the prefix: its ids, where the final turn starts, its language."""

    ids: tuple[int, ...]
    final_start: int
    language: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBatch:
    """Padded conversations.

    Attributes:
        prefix: [1, 97].
        ids: [B, T] tokens behind the prefix.
        mask: [B, T], True where real.
        weights: [B, T] of predicting the token at the same place from those before it.
        languages: one a sequence.
    """

    prefix: Tensor
    ids: Tensor
    mask: Tensor
    weights: Tensor
    languages: tuple[str, ...]


class CausalLanguageModel(nn.Module):
    """The encoder with a final norm and its own embedding as the head."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = GptOssEncoder(config, [config.num_hidden_layers - 1])
        self.norm = WeightedNorm(config.hidden_size, config.rms_norm_eps)

    def hidden(self, prefix: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """States [B, T, width] behind the shared prefix [1, P], normalised for the head."""
        cache = self.encoder.encode_prefix(prefix)
        return self.norm(self.encoder(ids, mask, cache)[-1])

    def logits(self, states: Tensor) -> Tensor:
        """[…, width] → [N, vocabulary]."""
        return F.linear(states, self.encoder.model.embed_tokens.weight)


def initialise_language_model(model: CausalLanguageModel) -> None:
    """Normals of fan-in scale; what is added to the stream is shrunk by its depth (GPT-2)."""
    shrink = (2 * model.config.num_hidden_layers) ** -0.5
    nn.init.normal_(model.encoder.model.embed_tokens.weight, std=0.04)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = shrink if name.endswith("o_proj") else 1.0
            nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
            if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                nn.init.zeros_(module.bias)
        elif isinstance(module, DenseExperts):
            nn.init.normal_(module.gate_up_proj, std=module.gate_up_proj.shape[1] ** -0.5)
            nn.init.normal_(module.down_proj, std=shrink * module.down_proj.shape[1] ** -0.5)
        elif isinstance(module, MixtureOfExperts):
            nn.init.normal_(module.router.weight, std=0.3 * module.router.weight.shape[1] ** -0.5)


class RouterWatch:
    """Collects the router's inputs during a forward pass, for the balance term."""

    def __init__(self, model: nn.Module) -> None:
        self._logits: list[tuple[Tensor, int]] = []
        for module in model.modules():
            if isinstance(module, MixtureOfExperts):
                module.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, MixtureOfExperts)
        logits = module.router.logits(inputs[0].flatten(0, 1)).float()
        self._logits.append((logits, module.router.num_chosen))

    def balance(self) -> Tensor:
        """experts * sum_e share_e * probability_e, mean over layers; 1 when even. Forgets."""
        terms: list[Tensor] = []
        for logits, num_chosen in self._logits:
            num_experts = logits.shape[-1]
            chosen = logits.topk(num_chosen, dim=-1).indices
            counts = torch.bincount(chosen.flatten(), minlength=num_experts)
            share = counts.float() / counts.sum()
            terms.append(num_experts * (share * logits.softmax(-1).mean(0)).sum())
        self._logits.clear()
        return torch.stack(terms).mean()


class LanguageModelObjective:
    """Weighted next-token loss on conversations about scenes."""

    def __init__(
        self,
        model: CausalLanguageModel,
        scenes: SceneSource,
        tokenizer: PromptTokenizer,
        config: LanguageModelConfig,
    ) -> None:
        self.model = model
        self.scenes = scenes
        self.tokenizer = tokenizer
        self.config = config
        self._watch = RouterWatch(model)
        self._end = tokenizer.special_id("<|return|>")
        self._fill = tokenizer.special_id("<|endoftext|>")
        self._windows = SortedWindows(
            self._window,
            lambda sample: len(sample.ids),
            batch_size=config.batch_size,
            steps_per_window=config.steps_per_window,
            seed=config.seed,
        )

    def sample(self, index: int) -> Sample:
        """Conversation number `index` of the corpus."""
        prompt, answer, language = self.scenes.example(index)
        text = self.tokenizer.encode(prompt, max_tokens=self.config.max_tokens).text_ids
        final = (*self.tokenizer.encode_text(answer), self._end)
        return Sample(ids=text + final, final_start=len(text), language=language)

    def _window(self, number: int) -> Sequence[Sample]:
        count = self.config.batch_size * self.config.steps_per_window
        return [self.sample(number * count + place) for place in range(count)]

    def batch(self, step: int) -> TextBatch:
        """Conversations of like lengths behind one prefix."""
        samples = self._windows.batch(step)
        return self.collate(samples, self._date(step))

    def _date(self, step: int) -> str:
        rng = np.random.default_rng((self.config.seed, step, 2))
        if rng.random() >= self.config.random_date_share:
            return DEFAULT_DATE
        day = Date(2024, 1, 1) + timedelta(days=int(rng.integers(365 * 8)))
        try:
            self.tokenizer.prefix(day.isoformat())
        except RequestError:  # a date that this vocabulary cuts into more pieces than others
            return DEFAULT_DATE
        return day.isoformat()

    def collate(self, samples: Sequence[Sample], date: str = DEFAULT_DATE) -> TextBatch:
        """Pad samples and weigh their tokens."""
        ids, mask = pad([sample.ids for sample in samples], self._fill)
        weights = torch.zeros(ids.shape)
        for row, sample in enumerate(samples):
            # The prompt and the marker that ends it; the rest of the suffix is always the same.
            weights[row, : sample.final_start - SUFFIX_LENGTH + 1] = self.config.prompt_weight
            weights[row, sample.final_start : len(sample.ids)] = 1.0
        prefix = torch.tensor(self.tokenizer.prefix(date))[None]
        languages = tuple(sample.language for sample in samples)
        return TextBatch(prefix=prefix, ids=ids, mask=mask, weights=weights, languages=languages)

    def loss(self, batch: TextBatch) -> Loss:
        """Weighted mean of next-token losses, plus balance; the final turn's part is reported."""
        device = self.model.norm.weight.device
        ids, weights = batch.ids.to(device), batch.weights.to(device)
        states = self.model.hidden(batch.prefix.to(device), ids, batch.mask.to(device))
        balance = self._watch.balance()
        predicted = weights[:, 1:] > 0
        logits = self.model.logits(states[:, :-1][predicted]).float()
        each = F.cross_entropy(logits, ids[:, 1:][predicted], reduction="none")
        weight = weights[:, 1:][predicted]
        value = (each * weight).sum() / weight.sum()
        final = each.detach()[weight == 1].mean()
        return Loss(
            value=value + self.config.balance_weight * balance,
            parts={"next_token": value, "final_turn": final, "balance": balance},
            num_items=ids.shape[0],
            num_tokens=int(predicted.sum()),
        )

    @torch.no_grad()
    def final_turn_losses(self, num_samples: int, first: int) -> dict[str, float]:
        """Mean next-token loss of the English answer by language, on examples from `first` on."""
        by_language: dict[str, list[Sample]] = {}
        for number in range(num_samples):
            sample = self.sample(first + number)
            by_language.setdefault(sample.language, []).append(sample)
        return {
            language: float(self.loss(self.collate(samples)).parts["final_turn"])
            for language, samples in sorted(by_language.items())
        }
