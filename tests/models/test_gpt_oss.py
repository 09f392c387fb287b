"""The text encoder against the original's hidden states, the prefix cache and YaRN."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from petzval.errors import ConfigError
from petzval.kernels import dispatch
from petzval.models.experts import MixtureOfExperts, gated_activation
from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder
from petzval.models.yarn import YarnConfig, inverse_frequencies, yarn_from_json, yarn_tables
from tests.support import GOLDENS, golden_json, golden_tensors

FEATURE_LIMIT = 1e-4  # relative to the features' maximum


@pytest.mark.parametrize("case", ["b1", "b2_long", "b3_pad"])
@pytest.mark.parametrize("arithmetic", ["fast", "reference"])
def test_features(encoder: GptOssEncoder, case: str, arithmetic: str) -> None:
    stored = golden_tensors("text_encoder.safetensors")
    ids, mask = stored[f"{case}.input_ids"], stored[f"{case}.attention_mask"].bool()
    if arithmetic == "reference":
        with dispatch.reference():
            got = encoder(ids, mask)
    else:
        got = encoder(ids, mask)
    for layer, features in enumerate(got):
        expected = stored[f"{case}.features.{layer}"]
        error = ((features - expected) * mask[..., None]).abs().max() / expected.abs().max()
        assert error <= FEATURE_LIMIT


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20])
def test_prefix_cache_changes_nothing(encoder: GptOssEncoder, length: int) -> None:
    ids = golden_tensors("text_encoder.safetensors")["b1.input_ids"]
    whole = encoder(ids)
    cache = encoder.encode_prefix(ids[:, :length])
    assert cache.length == length
    both = torch.cat((ids, ids))[:, length:]
    for expected, got in zip(whole, encoder(both, None, cache), strict=True):
        for row in got:
            error = (row - expected[0, length:]).abs().max() / expected.abs().max()
            assert error <= 1e-5


def test_layers_behind_the_last_feature_are_not_needed(encoder: GptOssEncoder) -> None:
    ids = golden_tensors("text_encoder.safetensors")["b1.input_ids"]
    short = GptOssEncoder(encoder.config, (1, 2), build_all=False).requires_grad_(False)
    assert len(short.model.layers) == 3
    state = encoder.state_dict()
    short.load_state_dict({key: state[key] for key in short.state_dict()})
    for got, expected in zip(short(ids), encoder(ids), strict=False):
        assert torch.equal(got, expected)


def test_packed_experts_and_whole_packed_encoder() -> None:
    from safetensors.torch import load_file

    config = GptOssConfig.from_json(golden_json("text_encoder_mxfp4/config.json"))
    assert config.packed_experts
    encoder = GptOssEncoder(config, (1, 2, 4, 5)).requires_grad_(False)
    state = load_file(GOLDENS / "text_encoder_mxfp4" / "model.safetensors")
    encoder.load_state_dict({k: v for k, v in state.items() if k in encoder.state_dict()})
    encoder.float()
    stored = golden_tensors("mxfp4.safetensors")
    ids, mask = stored["encoder.input_ids"], stored["encoder.attention_mask"].bool()
    for layer, features in enumerate(encoder(ids, mask)):
        expected = stored[f"encoder.features.{layer}"]
        error = ((features - expected) * mask[..., None]).abs().max() / expected.abs().max()
        assert error <= FEATURE_LIMIT
    mixture = encoder.model.layers[0].mlp
    assert isinstance(mixture, MixtureOfExperts)
    logits = mixture.router.logits(stored["moe.x"])
    weights, chosen = mixture.router.choose(logits)
    assert torch.allclose(logits, stored["moe.router_logits"], atol=1e-4)
    assert torch.equal(chosen, stored["moe.router_indices"])
    assert torch.allclose(weights, stored["moe.router_scores"], atol=1e-5)
    got, expected = mixture(stored["moe.x"][None])[0], stored["moe.y"]
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    gate_up, bias, _, _ = mixture.experts.matrices(0)
    hidden = stored["moe.x"] @ gate_up + bias
    assert (hidden - stored["moe.gate_up_expert0"]).abs().max() <= 1e-4
    gated = gated_activation(hidden, 7.0)
    assert (gated - stored["moe.gated_expert0"]).abs().max() <= 1e-3


def test_yarn_tables() -> None:
    stored = golden_tensors("text_encoder.safetensors")
    config = yarn_from_json(golden_json("checkpoint/text_encoder/config.json"))
    assert torch.allclose(inverse_frequencies(config, 16), stored["rope.inv_freq"], rtol=1e-6)
    cos, sin = yarn_tables(config, 16, 0, 40)
    assert (cos - stored["rope.cos"]).abs().max() <= 2e-6
    assert (sin - stored["rope.sin"]).abs().max() <= 2e-6


def test_a_config_without_rope_entries_is_still_yarn() -> None:
    stored: dict[str, Any] = dict(golden_json("checkpoint/text_encoder/config.json"))
    del stored["rope_parameters"]
    assert yarn_from_json(stored) == YarnConfig()
    assert (
        GptOssConfig.from_json(stored).yarn
        == GptOssConfig.from_json(golden_json("text_encoder_mxfp4/config.json")).yarn
    )
    assert abs(YarnConfig().attention_factor - 1.3465735902799727) < 1e-15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "default"}}, "not YaRN"),
        ({"rope_parameters": [1]}, "must be an object"),
        ({"hidden_size": "64"}, "whole number"),
        ({"hidden_size": True}, "whole number"),
        ({"num_hidden_layers": 5}, "6 layer_types for 5 layers"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "at most 1024"),
        ({"num_attention_heads": 10**12}, "at most 4096"),
        ({"vocab_size": 10**12}, "at most 16777216"),
        ({"head_dim": 15}, "^text encoder: head_dim must be even"),
    ],
)
def test_configs_that_are_refused(change: dict[str, Any], message: str) -> None:
    stored = dict(golden_json("checkpoint/text_encoder/config.json")) | change
    with pytest.raises(ConfigError, match=message):
        GptOssConfig.from_json(stored)


def test_selected_layers_must_exist(encoder: GptOssEncoder) -> None:
    with pytest.raises(ConfigError, match="0 to 5"):
        GptOssEncoder(encoder.config, (1, 6))
