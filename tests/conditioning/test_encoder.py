"""Features of prompts: against the recorded ones, and each saving against the slow way."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from petzval.conditioning.encoder import (
    FeatureCache,
    PromptEncoder,
    PromptFeatures,
    PromptTruncatedWarning,
)
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import CheckpointError, RequestError
from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder
from tests.support import golden_tensors

LIMIT = 1e-4
"""Of the largest feature: what float32 rounding of this encoder is allowed to be."""

PROMPTS = [
    "A red fox sleeping under a birch tree in the snow, soft morning light",
    'A ceramic sign reading "OPEN" in white letters',
    "一只戴着帽子的猫坐在窗台上",
]


@pytest.fixture(scope="module")
def tokenizer(golden_checkpoint: Path) -> PromptTokenizer:
    return PromptTokenizer(golden_checkpoint / "tokenizer")


@pytest.fixture(scope="module")
def language_model(golden_checkpoint: Path) -> GptOssEncoder:
    folder = golden_checkpoint / "text_encoder"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = GptOssEncoder(GptOssConfig.from_json(config), (1, 2, 4, 5)).requires_grad_(False)
    stored = golden_tensors("checkpoint/text_encoder/model.safetensors")
    model.load_state_dict({key: stored[key] for key in model.state_dict()})
    return model


@pytest.fixture
def encoder(language_model: GptOssEncoder, tokenizer: PromptTokenizer) -> PromptEncoder:
    return PromptEncoder(language_model, tokenizer, checkpoint_id="tiny")


class Calls:
    """Counts the runs of a language model, and the ids each was given."""

    def __init__(self, model: GptOssEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.num_prefixes = 0
        forward, encode_prefix = model.forward, model.encode_prefix

        def counted_forward(input_ids: torch.Tensor, *rest: object, **named: object) -> object:
            self.shapes.append(tuple(input_ids.shape))
            return forward(input_ids, *rest, **named)  # pyright: ignore[reportArgumentType]

        def counted_prefix(input_ids: torch.Tensor) -> object:
            self.num_prefixes += 1
            return encode_prefix(input_ids)

        monkeypatch.setattr(model, "forward", counted_forward)
        monkeypatch.setattr(model, "encode_prefix", counted_prefix)


@pytest.fixture
def calls(language_model: GptOssEncoder, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(language_model, monkeypatch)


def _error(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference, relative to the layer's largest value."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("use_prefix_cache", [True, False])
def test_features_are_the_recorded_ones(
    language_model: GptOssEncoder,
    tokenizer: PromptTokenizer,
    use_prefix_cache: bool,
) -> None:
    stored = golden_tensors("prompt_features.safetensors")
    encoder = PromptEncoder(
        language_model, tokenizer, checkpoint_id="tiny", use_prefix_cache=use_prefix_cache
    )
    for row, features in enumerate(encoder.encode(PROMPTS)):
        length = int(stored["features_mask"][row].sum())
        assert features.num_tokens == length
        expected = [stored[f"features.{layer}"][row, :length] for layer in range(4)]
        assert _error(features.layers, expected) <= LIMIT


def test_prefix_cache_and_slow_path_agree(
    language_model: GptOssEncoder, tokenizer: PromptTokenizer, encoder: PromptEncoder
) -> None:
    slow = PromptEncoder(language_model, tokenizer, checkpoint_id="tiny", use_prefix_cache=False)
    prompts = [*PROMPTS, "", "🦊", "a " * 150]
    for date in ("2026-05-26", "2026-12-01"):
        fast_features = encoder.encode(prompts, date=date)
        for fast, exact in zip(fast_features, slow.encode(prompts, date=date), strict=True):
            assert _error(fast.layers, exact.layers) <= LIMIT


def test_prompts_together_equal_the_same_prompts_alone(encoder: PromptEncoder) -> None:
    prompts = ["a cat", "a fox", "a red fox", "a cat", ""]
    together = encoder.encode(prompts)
    encoder.cache.clear()
    for prompt, features in zip(prompts, together, strict=True):
        assert _error(features.layers, encoder.encode([prompt])[0].layers) <= LIMIT
        encoder.cache.clear()
    assert together[0] is together[3]


def test_equal_lengths_share_a_run_and_the_prefix_is_read_once(
    encoder: PromptEncoder, calls: Calls
) -> None:
    features = encoder.encode(["a a a", "a b a", "b a b", "a a", "a a a"])
    assert [each.num_tokens for each in features] == [25, 25, 25, 24, 25]
    assert sorted(calls.shapes) == [(1, 24), (3, 25)]
    encoder.encode(["b b b b"])
    assert calls.num_prefixes == 1
    encoder.encode(["b b b b"], date="2026-12-01")
    assert calls.num_prefixes == 2


def test_a_run_is_never_larger_than_allowed(
    language_model: GptOssEncoder, tokenizer: PromptTokenizer, calls: Calls
) -> None:
    encoder = PromptEncoder(language_model, tokenizer, checkpoint_id="tiny", max_batch=2)
    features = encoder.encode(["a", "b", "c", "d", "e"])
    assert [shape[0] for shape in calls.shapes] == [2, 2, 1]
    assert all(each.num_tokens == 23 for each in features)


def test_features_are_remembered_under_all_they_depend_on(
    encoder: PromptEncoder, calls: Calls
) -> None:
    first = encoder.encode(["a fox <|end|> b"])[0]
    assert encoder.encode(["a fox <|end|> b"])[0] is first
    assert len(calls.shapes) == 1
    encoder.encode(["a fox <|end|> b"], date="2026-12-01")
    encoder.encode(["a fox <|end|> b"], markers="reference")
    encoder.encode(["a fox <|end|> b"], truncate="reference")
    encoder.encode(["a fox <|end|> b"], max_tokens=300)
    assert len(calls.shapes) == 5
    assert len(encoder.cache) == 5


def test_another_date_gives_other_features(encoder: PromptEncoder) -> None:
    pinned, other = (
        encoder.encode(["a fox"], date=date)[0] for date in ("2026-05-26", "2026-12-01")
    )
    assert _error(pinned.layers, other.layers) > 1e-3


def test_a_cache_keeps_the_latest_within_its_bytes(
    language_model: GptOssEncoder, tokenizer: PromptTokenizer, calls: Calls
) -> None:
    one = 4 * 23 * 64 * 4
    encoder = PromptEncoder(language_model, tokenizer, checkpoint_id="tiny", cache_size=2 * one)
    for prompt in ("a", "b", "a", "c", "a"):
        assert encoder.encode([prompt])[0].num_bytes == one
        assert encoder.cache.num_bytes <= 2 * one
    assert len(calls.shapes) == 3
    encoder.encode(["b"])
    assert len(calls.shapes) == 4
    encoder.encode(["a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a"])
    assert len(encoder.cache) == 2
    encoder.cache.limit(one)
    assert (len(encoder.cache), encoder.cache.num_bytes) == (1, one)
    encoder.cache.limit(9 * one)
    assert encoder.cache.max_bytes == 2 * one  # never more than at first
    assert FeatureCache(0).max_bytes == 0


def test_cached_features_hold_no_larger_storage(encoder: PromptEncoder) -> None:
    for features in encoder.encode(["a", "b", "c"]):
        for layer in features.layers:
            assert layer.untyped_storage().nbytes() == layer.numel() * layer.element_size()


def test_features_may_be_trained_on(encoder: PromptEncoder) -> None:
    weight = torch.ones(64, requires_grad=True)
    (encoder.encode(["a fox"])[0].layers[0] * weight).sum().backward()  # pyright: ignore[reportUnknownMemberType]
    assert weight.grad is not None


def test_a_blank_prompt_has_the_suffix_and_empty_features_have_nothing(
    encoder: PromptEncoder,
) -> None:
    assert encoder.encode([""])[0].num_tokens == 22
    empty = encoder.empty_features()
    assert empty.num_tokens == 0
    assert [tuple(layer.shape) for layer in empty.layers] == [(0, 64)] * 4
    assert encoder.encode([]) == []


def test_nothing_is_left_of_a_conversation_cut_within_the_prefix(
    encoder: PromptEncoder, calls: Calls
) -> None:
    with pytest.warns(PromptTruncatedWarning, match="conversation's end"):
        features = encoder.encode(["a fox"], max_tokens=90, truncate="reference")[0]
    assert features.num_tokens == 0
    assert len(features.layers) == 4
    assert features.truncated
    assert not calls.shapes


def test_a_long_prompt_warns_every_time_and_names_the_numbers(encoder: PromptEncoder) -> None:
    prompt = "a" + " a" * 892
    with pytest.warns(PromptTruncatedWarning, match="500 tokens too long .* of 512"):
        encoder.encode([prompt])
    with pytest.warns(PromptTruncatedWarning, match="the prompt's end"):
        features = encoder.encode([prompt])[0]
    assert features.num_tokens == 512 - 97
    assert features.num_dropped == 500
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["a" + " a" * 392])


def test_dtype_follows_the_language_model(
    language_model: GptOssEncoder, tokenizer: PromptTokenizer, encoder: PromptEncoder
) -> None:
    half = GptOssEncoder(language_model.config, (1, 5)).requires_grad_(False)
    half.load_state_dict(language_model.state_dict())
    half.to(torch.bfloat16)
    rounded = PromptEncoder(half, tokenizer, checkpoint_id="tiny")
    features = rounded.encode(["a fox"])[0]
    exact = encoder.encode(["a fox"])[0]
    assert {layer.dtype for layer in features.layers} == {torch.bfloat16}
    assert rounded.empty_features().layers[0].dtype == torch.bfloat16
    difference = features.layers[0].float() - exact.layers[0]
    assert float(difference.square().mean() / exact.layers[0].square().mean()) < 0.1**2


def test_bad_settings_and_strange_checkpoints_are_refused(
    language_model: GptOssEncoder, tokenizer: PromptTokenizer, encoder: PromptEncoder
) -> None:
    with pytest.raises(RequestError):
        encoder.encode(["a"], date="soon")
    with pytest.raises(RequestError):
        encoder.encode(["a"], truncate="left")
    small = GptOssConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=32,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=600,
    )
    with pytest.raises(CheckpointError, match="657 ids, the text encoder embeds 600"):
        PromptEncoder(GptOssEncoder(small, (0, 1)), tokenizer, checkpoint_id="other")


def test_features_compare_by_identity(encoder: PromptEncoder) -> None:
    features = encoder.empty_features()
    assert features != PromptFeatures(layers=features.layers)
