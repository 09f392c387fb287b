"""Whole networks in llama.cpp's mixed kinds, as files called Q4_K_M are, against gguf's decoding.

The golden networks are given what the format's own library makes of the same files, under names
that are spelt out here; so nothing of the reader is on both sides.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from petzval.models.coded import CodedLinear
from petzval.models.experts import PACKINGS, PackedExperts
from petzval.models.gpt_oss import GptOssConfig, GptOssEncoder
from petzval.models.mmdit import MMDiT, MMDiTConfig
from petzval.weights.assembly import assemble
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.manifest import build_on_meta, expected_tensors
from petzval.weights.published import published_json
from petzval.weights.source import packings
from tests.support import TINY_CHECKPOINT
from tests.weights.formats import write_gguf
from tests.weights.k_quants import ENCODERS, encoded
from tests.weights.support import velocity_of

TINY = Checkpoint.open(TINY_CHECKPOINT)
HIDDEN = 288
"""As GPT-OSS' 2880: whole blocks of 32 and none of 256, so that llama.cpp falls back to others."""

ENCODER = GptOssConfig(
    hidden_size=HIDDEN,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    intermediate_size=HIDDEN,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=TINY.encoder_config.vocab_size,
    sliding_window=8,
)
DENOISER = dataclasses.replace(
    TINY.denoiser_config,
    num_layers=2,
    num_attention_heads=4,
    enc_hidden_dim=HIDDEN,
    selected_layer_index=(0, 1),
    inner_dim=256,
)
IDS = torch.arange(40, 57)[None]


def _weights(config: MMDiTConfig | GptOssConfig) -> dict[str, np.ndarray]:
    """Normal numbers of the size that keeps a network's activations near one."""
    generator = np.random.default_rng(11)
    weights: dict[str, np.ndarray] = {}
    for key, wanted in expected_tensors(config).items():
        inputs = wanted.shape[-2] if len(wanted.shape) == 3 else wanted.shape[-1]
        size = 0.1 if len(wanted.shape) == 1 or key.endswith("_bias") else inputs**-0.5
        values = size * generator.standard_normal(wanted.shape)
        weights[key] = (values + ("norm" in key and len(wanted.shape) == 1)).astype(np.float32)
    return weights


# ── the denoiser ──────────────────────────────────────────────────────────────────────────────────

FOLDED = "transformer_blocks.0.img_mlp.w2.weight"
"""[256, 682] as [682, 256], with its shape in a setting, as ComfyUI-GGUF does it."""

KINDS: Mapping[str, str] = {
    "img_qkv": "Q4_K",
    "txt_qkv": "Q5_K",
    "to_out.0": "Q6_K",
    "to_add_out": "Q4_K",
    "w1": "Q4_K",
    "w3": "Q5_K",
    "mod.1": "Q4_K",
    "linear_1": "Q6_K",
    "proj_out": "Q6_K",
    "norm_out.linear": "BF16",
    "w2": "F16",
}
"""End of a layer's name → its kind; others, whose rows are no whole blocks, are Q8_0."""


def _denoiser(file: Path) -> Path:
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for key, values in _weights(DENOISER).items():
        layer = key.removesuffix(".weight")
        kind = next((kind for end, kind in KINDS.items() if layer.endswith(end)), "Q8_0")
        if key == FOLDED:
            kind, values = "Q6_K", values.reshape(-1, 256)  # noqa: PLW2901
        if values.ndim == 1:
            kind = "F32"
        tensors[key] = (encoded(values, kind) if kind in ENCODERS else values, kind)
    config = {"petzval.config": json.dumps(published_json(DENOISER))}
    return write_gguf(file, tensors, config, shapes={FOLDED: (256, 682)})


def _decoded(file: Path) -> dict[str, Tensor]:
    """Every tensor as the format's own library decodes it."""
    return {
        tensor.name: torch.from_numpy(
            np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        )
        for tensor in gguf.GGUFReader(file).tensors
    }


def _golden_denoiser(file: Path) -> MMDiT:
    state = _decoded(file)
    state[FOLDED] = state[FOLDED].reshape(256, 682)
    network = build_on_meta(DENOISER)
    assert isinstance(network, MMDiT)
    network.load_state_dict(state, assign=True)
    return network.eval()


# ── the text encoder ──────────────────────────────────────────────────────────────────────────────

LLAMA_CPP: Mapping[str, tuple[str, str]] = {
    "self_attn.q_proj": ("attn_q", "Q5_0"),
    "self_attn.k_proj": ("attn_k", "Q5_0"),
    "self_attn.v_proj": ("attn_v", "Q8_0"),
    "self_attn.o_proj": ("attn_output", "Q4_K"),
    "mlp.router": ("ffn_gate_inp", "F32"),
    "input_layernorm": ("attn_norm", "F32"),
    "post_attention_layernorm": ("post_attention_norm", "F32"),
}
"""Published name in a layer → llama.cpp's, and what a Q4_K_M holds there; biases are F32."""

EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def _encoder(file: Path) -> Path:
    weights = _weights(ENCODER)
    tensors: dict[str, tuple[np.ndarray, str]] = {
        "token_embd.weight": (weights["model.embed_tokens.weight"], "Q5_0"),
        "output_norm.weight": (weights["model.norm.weight"], "F32"),
        "output.weight": (weights["lm_head.weight"], "Q8_0"),
    }
    for i in range(ENCODER.num_hidden_layers):
        ours, theirs = f"model.layers.{i}", f"blk.{i}"
        for name, (other, kind) in LLAMA_CPP.items():
            values = weights[f"{ours}.{name}.weight"]
            stored = encoded(values, kind) if kind in ENCODERS else values
            tensors[f"{theirs}.{other}.weight"] = (stored, kind)
            if f"{ours}.{name}.bias" in weights:
                tensors[f"{theirs}.{other}.bias"] = (weights[f"{ours}.{name}.bias"], "F32")
        tensors[f"{theirs}.attn_sinks.weight"] = (weights[f"{ours}.self_attn.sinks"], "F32")
        bank = weights[f"{ours}.mlp.experts.gate_up_proj"].transpose(0, 2, 1)
        bias = weights[f"{ours}.mlp.experts.gate_up_proj_bias"]
        down = weights[f"{ours}.mlp.experts.down_proj"].transpose(0, 2, 1)
        banks = (bank[:, 0::2], bank[:, 1::2], down)
        biases = (bias[:, 0::2], bias[:, 1::2], weights[f"{ours}.mlp.experts.down_proj_bias"])
        for name, values, offset in zip(EXPERTS, banks, biases, strict=True):
            tensors[f"{theirs}.{name}.weight"] = (np.ascontiguousarray(values), "MXFP4")
            tensors[f"{theirs}.{name}.bias"] = (np.ascontiguousarray(offset), "F32")
    numbers: dict[str, int | float] = {
        "gpt-oss.attention.sliding_window": ENCODER.sliding_window,
        "gpt-oss.expert_used_count": ENCODER.num_experts_per_tok,
        "gpt-oss.attention.layer_norm_rms_epsilon": 1e-5,
    }
    return write_gguf(file, tensors, numbers=numbers, architecture="gpt-oss")


def _golden_encoder(file: Path) -> GptOssEncoder:
    found = _decoded(file)
    state = {
        "model.embed_tokens.weight": found["token_embd.weight"],
        **{
            f"model.layers.{i}.{ours}.{part}": found[f"blk.{i}.{theirs}.{part}"]
            for i in range(ENCODER.num_hidden_layers)
            for ours, (theirs, _) in LLAMA_CPP.items()
            for part in ("weight", "bias")
            if f"blk.{i}.{theirs}.{part}" in found
        },
    }
    for i in range(ENCODER.num_hidden_layers):
        owner = f"model.layers.{i}"
        state[f"{owner}.self_attn.sinks"] = found[f"blk.{i}.attn_sinks.weight"]
        for part, end in (("weight", ""), ("bias", "_bias")):
            gate, up, down = (found[f"blk.{i}.{name}.{part}"] for name in EXPERTS)
            both = torch.empty(len(gate), 2 * gate.shape[1], *gate.shape[2:])
            both[:, 0::2], both[:, 1::2] = gate, up
            for name, values in (("gate_up_proj", both), ("down_proj", down)):
                bank = values.transpose(1, 2) if part == "weight" else values
                state[f"{owner}.mlp.experts.{name}{end}"] = bank
    network = build_on_meta(ENCODER, DENOISER.selected_layer_index)
    assert isinstance(network, GptOssEncoder)
    network.load_state_dict(state, assign=True)
    return network.eval()


# ── both, by the door that a user takes ───────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("k-quants")
    return _denoiser(folder / "lens-Q4_K_M.gguf"), _encoder(folder / "gpt-oss-Q4_K_M.gguf")


def _near(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_a_denoiser_in_mixed_kinds_gives_the_librarys_velocity(files: tuple[Path, Path]) -> None:
    checkpoint = assemble(*files, TINY_CHECKPOINT, TINY_CHECKPOINT)
    assert packings(checkpoint.denoiser_source) == ("Q4_K", "Q5_K", "Q6_K", "Q8_0")
    golden, decoded = _golden_denoiser(files[0]), checkpoint.load_denoiser(torch.float32)
    state = golden.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in decoded.state_dict().items())
    coded = checkpoint.load_denoiser(torch.float32, coded=True)
    kept = [name for name, each in coded.named_modules() if isinstance(each, CodedLinear)]
    assert FOLDED.removesuffix(".weight") in kept
    assert len(kept) == 2 * 8 + 1  # every matrix of the blocks but the three in float16
    velocity = velocity_of(golden)
    assert torch.equal(velocity_of(decoded), velocity)
    assert torch.equal(velocity_of(coded), velocity)
    exact = build_on_meta(DENOISER)
    assert isinstance(exact, MMDiT)
    weights = {key: torch.from_numpy(values) for key, values in _weights(DENOISER).items()}
    exact.load_state_dict(weights, assign=True)
    assert 0.005 < _near(velocity, velocity_of(exact.eval())) < 0.12


@pytest.mark.parametrize("keep", [PACKINGS, ()], ids=["coded", "decoded"])
def test_an_encoder_in_mixed_kinds_gives_the_librarys_features(
    files: tuple[Path, Path], keep: tuple[str, ...]
) -> None:
    checkpoint = assemble(*files, TINY_CHECKPOINT, TINY_CHECKPOINT, keep=keep)
    assert packings(checkpoint.encoder_source) == ("MXFP4", "Q4_K", "Q5_0", "Q8_0")
    sizes = dataclasses.replace(checkpoint.encoder_config, packed_experts=False)
    assert sizes == ENCODER
    encoder = checkpoint.load_encoder(torch.float32)
    experts = encoder.model.layers[0].get_submodule("mlp.experts")
    assert isinstance(experts, PackedExperts) == bool(keep)
    with torch.no_grad():
        expected, got = _golden_encoder(files[1])(IDS), encoder(IDS)
    for one, other in zip(got, expected, strict=True):
        assert _near(one, other) < 1e-6


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_what_the_tests_write_is_what_the_library_reads(kind: str) -> None:
    values = np.random.default_rng(5).standard_normal((6, 512)).astype(np.float32)
    raw = encoded(values, kind)
    read: Callable[..., np.ndarray] = gguf.dequantize
    error = read(raw, gguf.GGMLQuantizationType[kind]) - values
    limit = {"Q4_K": 0.09, "Q5_K": 0.045, "Q6_K": 0.025}[kind]
    assert limit / 2 < np.linalg.norm(error) / np.linalg.norm(values) < limit
