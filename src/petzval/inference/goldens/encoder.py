"""The text encoder: features, every layer, logits, greedy continuation, MXFP4 experts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from petzval.inference.goldens.case import (
    FEATURE_LIMIT,
    ROPE_LIMIT,
    CaseResult,
    absolute,
    differing,
    fault,
    judge,
    masked,
    relative,
)
from petzval.inference.goldens.folder import GoldenFile, GoldenFolder, Subject, nothing_unread
from petzval.kernels import dispatch
from petzval.models.experts import MixtureOfExperts, gated_activation
from petzval.models.gpt_oss import GptOssEncoder
from petzval.models.yarn import inverse_frequencies, yarn_tables
from petzval.weights.checkpoint import load_encoder, open_encoder
from petzval.weights.mxfp4 import decode_experts, encode_experts
from petzval.weights.source import Source

PACKED_FOLDER = "text_encoder_mxfp4"
_LARGEST = "relative to the largest value"


def check_encoder(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Features of padded batches, every layer, the YaRN tables, and what the head makes of it."""
    stored = golden.tensors("text_encoder.safetensors")
    for case in stored.cases("input_ids"):
        yield from _check_features(f"text_encoder/{case}", stored, f"{case}.", subject.encoder)
        yield from _check_layers(stored, case, subject)
    yield from _check_yarn(stored, subject)
    for case in stored.cases("output_ids"):
        yield _check_greedy(stored, case, subject)
    yield from nothing_unread("text_encoder", stored)


def _check_features(
    name: str, stored: GoldenFile, prefix: str, encoder: GptOssEncoder
) -> Iterator[CaseResult]:
    """Features where the mask is 1; and each row alone, cut to its length."""
    ids, mask = stored[f"{prefix}input_ids"], stored[f"{prefix}attention_mask"].bool()
    expected = stored.numbered(f"{prefix}features")
    got = encoder(ids, mask)
    if len(got) != len(expected):
        yield fault(name, f"{len(expected)} recorded layers, {len(got)} selected here")
        return
    error = max(relative(masked(g, mask), e) for g, e in zip(got, expected, strict=True))
    yield judge(name, error, FEATURE_LIMIT, _LARGEST)
    worst = 0.0
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = encoder(ids[row : row + 1, :length])
        for g, e in zip(alone, expected, strict=True):
            scale = max(float(e.abs().max()), 1e-30)
            worst = max(worst, absolute(g[0], e[row, :length]) / scale)
    yield judge(f"{name} alone", worst, FEATURE_LIMIT, "each prompt without padding or mask")


def _check_layers(stored: GoldenFile, case: str, subject: Subject) -> Iterator[CaseResult]:
    recorded = stored.numbered(f"{case}.layer")
    names = [name for name in ("final_norm", "logits") if f"{case}.{name}" in stored]
    if not recorded and not names:
        return
    mask = stored[f"{case}.attention_mask"].bool()
    states = _all_layers(subject.encoder, stored[f"{case}.input_ids"], mask)
    for index, expected in enumerate(recorded):
        error = relative(masked(states[index], mask), masked(expected, mask))
        yield judge(f"text_encoder/{case}.layer.{index}", error, FEATURE_LIMIT, _LARGEST)
    if names:
        normed, logits = _head(states[-1], subject)
        for name, got in (("final_norm", normed), ("logits", logits)):
            if name in names:
                expected = masked(stored[f"{case}.{name}"], mask)
                error = relative(masked(got, mask), expected)
                yield judge(f"text_encoder/{case}.{name}", error, FEATURE_LIMIT, _LARGEST)


def _all_layers(encoder: GptOssEncoder, ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The residual stream after every layer."""
    selected = encoder.selected_layers
    encoder.selected_layers = tuple(range(encoder.config.num_hidden_layers))
    try:
        return encoder(ids, mask)
    finally:
        encoder.selected_layers = selected


def _head(state: Tensor, subject: Subject) -> tuple[Tensor, Tensor]:
    """Final norm and logits; these two tensors are published but not part of the encoder."""
    source = subject.checkpoint.encoder_source
    weight = source.read("model.norm.weight", torch.float32)
    normed = dispatch.rms_norm_float32_weight(state, weight, subject.encoder.config.rms_norm_eps)
    return normed, normed @ source.read("lm_head.weight", torch.float32).T


def _check_greedy(stored: GoldenFile, case: str, subject: Subject) -> CaseResult:
    """The most likely token again and again; the first difference spoils all that follow."""
    ids, expected = stored[f"{case}.prompt_ids"], stored[f"{case}.output_ids"]
    while ids.shape[1] < expected.shape[1]:
        _, logits = _head(_all_layers(subject.encoder, ids, None)[-1][:, -1:], subject)
        ids = torch.cat((ids, logits[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    return judge(f"text_encoder/{case}", differing(ids, expected), 0, "tokens that differ")


def _check_yarn(stored: GoldenFile, subject: Subject) -> Iterator[CaseResult]:
    yarn, head_dim = subject.encoder.config.yarn, subject.encoder.config.head_dim
    if "rope.inv_freq" in stored:
        got = inverse_frequencies(yarn, head_dim)
        error = absolute(got, stored["rope.inv_freq"])
        yield judge("text_encoder/rope.inv_freq", error, ROPE_LIMIT)
    if "rope.attention_scaling" in stored:
        factor = torch.tensor([yarn.attention_factor], dtype=torch.float64)
        error = absolute(factor, stored["rope.attention_scaling"])
        yield judge("text_encoder/rope.attention_scaling", error, 1e-9)
    if "rope.cos" in stored:
        cos, sin = yarn_tables(yarn, head_dim, 0, stored["rope.cos"].shape[0])
        error = max(absolute(cos, stored["rope.cos"]), absolute(sin, stored["rope.sin"]))
        yield judge("text_encoder/rope", error, ROPE_LIMIT)


def check_prompt_features(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Prompts of the index through template, tokenizer and encoder, the prefix cut off."""
    stored = golden.tensors("prompt_features.safetensors")
    mask, expected = stored["features_mask"].bool(), stored.numbered("features")
    prompts = list(golden.config.get("prompts", []))[: mask.shape[0]]
    if len(prompts) < mask.shape[0]:
        yield fault("prompt_features", "index.json has fewer prompts than there are features")
        return
    encoded = subject.text.encode(prompts, date=golden.date)
    for row, features in enumerate(encoded):
        length = int(mask[row].sum())
        error = 0.0
        for got, layer in zip(features.layers, expected, strict=True):
            scale = max(float(layer.abs().max()), 1e-30)
            error = max(error, absolute(got, layer[row, :length]) / scale)
        yield judge(f"prompt_features/{row}", error, FEATURE_LIMIT, _LARGEST)
    yield from nothing_unread("prompt_features", stored)


def check_mxfp4(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Decoding bit by bit, one expert layer, and a whole encoder with packed experts."""
    stored = golden.tensors("mxfp4.safetensors")
    yield from _check_codes(stored)
    component = golden.folder / PACKED_FOLDER
    if not component.is_dir():
        yield fault("mxfp4", f"the folder {PACKED_FOLDER}/ is missing")
        return
    config, source = open_encoder(component)
    selected = subject.denoiser.config.selected_layer_index
    encoder = load_encoder(config, source, selected, torch.float32, all_layers=True)
    yield from _check_stored_experts(stored, source)
    mixture = encoder.model.layers[0].get_submodule("mlp")
    assert isinstance(mixture, MixtureOfExperts)
    if "moe.x" in stored:
        yield from _check_mixture(stored, mixture, config.swiglu_limit)
    if "encoder.input_ids" in stored:
        yield from _check_features("mxfp4/encoder", stored, "encoder.", encoder)
    yield from nothing_unread("mxfp4", stored)


def _check_codes(stored: GoldenFile) -> Iterator[CaseResult]:
    """`blocks.X`, `scales.X`, `dequant.X`, and `X.blocks`, `X.scales`, `X.dequant`."""
    triples = {
        key.removeprefix("blocks."): tuple(
            key.replace("blocks.", f"{part}.", 1) for part in ("blocks", "scales", "dequant")
        )
        for key in stored.keys
        if key.startswith("blocks.")
    }
    for case in stored.cases("blocks"):
        triples[case] = (f"{case}.blocks", f"{case}.scales", f"{case}.dequant")
    for name, (blocks, scales, dequant) in triples.items():
        expected = stored[dequant]
        got = decode_experts(stored[blocks], stored[scales], expected.dtype)
        yield judge(f"mxfp4/{name}", differing(got, expected), 0, "values that differ")
        packed = encode_experts(expected)
        again = decode_experts(*packed, expected.dtype)
        error = differing(again, expected)
        yield judge(f"mxfp4/{name} encoded", error, 0, "values that differ after a round trip")


def _check_stored_experts(stored: GoldenFile, source: Source) -> Iterator[CaseResult]:
    """The recorded blocks are those of layer 0 of the packed encoder."""
    for kind, ending in (("blocks", "_blocks"), ("scales", "_scales"), ("bias", "_bias")):
        for key in stored.keys:
            if key.startswith(f"{kind}."):
                name = f"model.layers.0.mlp.experts.{key.removeprefix(f'{kind}.')}{ending}"
                expected = stored[key]
                error = differing(source.read(name, expected.dtype), expected)
                yield judge(f"mxfp4/{key}", error, 0, "values that differ from the checkpoint's")


def _check_mixture(
    stored: GoldenFile, mixture: MixtureOfExperts, limit: float
) -> Iterator[CaseResult]:
    x = stored["moe.x"]
    logits = mixture.router.logits(x)
    weights, chosen = mixture.router.choose(logits)
    gate_up, bias, _, _ = mixture.experts.matrices(0)
    hidden = x @ gate_up + bias
    pairs = {
        "router_weight": mixture.router.weight,
        "router_bias": mixture.router.bias,
        "router_logits": logits,
        "router_scores": weights,
        "y": mixture(x[None])[0],
        "gate_up_expert0": hidden,
        "gated_expert0": gated_activation(hidden, limit),
    }
    for name, got in pairs.items():
        if f"moe.{name}" in stored:
            error = relative(got, stored[f"moe.{name}"])
            yield judge(f"mxfp4/moe.{name}", error, FEATURE_LIMIT, _LARGEST)
    if "moe.router_indices" in stored:
        error = differing(chosen, stored["moe.router_indices"])
        yield judge("mxfp4/moe.router_indices", error, 0, "experts that differ")
