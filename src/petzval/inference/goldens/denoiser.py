"""The denoiser: timestep embedding, norms, every state inside a block, whole calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from petzval.inference.goldens.case import (
    CALL_LIMIT,
    NORM_LIMIT,
    SINUSOID_LIMIT,
    STATE_LIMIT,
    CaseResult,
    absolute,
    differing,
    fault,
    judge,
    relative_by_row,
    unchecked,
)
from petzval.inference.goldens.folder import GoldenFile, GoldenFolder, Subject, nothing_unread
from petzval.models.attention import JointAttention
from petzval.models.layers import adaptive_layer_norm, timestep_sinusoid
from petzval.models.mmdit import MMDiT, MMDiTBlock

_VAE_NORM = re.compile(r"mid_resnet(\d+)_norm(\d+)")


def check_timestep(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Sinusoidal features and the conditioning vector."""
    stored = golden.tensors("timestep.safetensors")
    sinusoid = timestep_sinusoid(stored["t"], stored["sinusoid"].shape[-1])
    yield judge("timestep/sinusoid", absolute(sinusoid, stored["sinusoid"]), SINUSOID_LIMIT)
    embedded = subject.denoiser.time_text_embed(stored["t"])
    yield judge("timestep/temb", absolute(embedded, stored["temb"]), CALL_LIMIT)
    yield from nothing_unread("timestep", stored)


def check_calls(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Whole calls: as recorded, padded and masked, and each sample alone without padding."""
    stored = golden.tensors("dit.safetensors")
    for case in stored.cases("hidden_states"):
        tokens, sigma = stored[f"{case}.hidden_states"], stored[f"{case}.timestep"]
        features = stored.numbered(f"{case}.text_features")
        mask, expected = stored[f"{case}.text_mask"].bool(), stored[f"{case}.output"]
        height, width = (int(side) for side in stored[f"{case}.hw"])
        got = subject.denoiser.velocity(tokens, features, sigma, (height, width), mask)
        yield judge(f"dit/{case}", absolute(got, expected), CALL_LIMIT)
        rows: list[Tensor] = []
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            alone = [layer[row : row + 1, :length] for layer in features]
            one = slice(row, row + 1)
            rows.append(subject.denoiser.velocity(tokens[one], alone, sigma[one], (height, width)))
        error = absolute(torch.cat(rows), expected)
        yield judge(f"dit/{case} alone", error, CALL_LIMIT, "each sample without padding or mask")
    yield from nothing_unread("dit", stored)


def check_states(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Every recorded state inside the network, during one whole call."""
    stored = golden.tensors("dit_blocks.safetensors")
    calls = golden.tensors("dit.safetensors")
    case = next((c for c in calls.cases("output") if _same(calls[f"{c}.output"], stored)), None)
    if case is None:
        yield fault("dit_blocks", "no case of dit.safetensors has this output")
        return
    states = record_states(subject.denoiser, calls, case)
    for key in stored.keys:
        if key not in states:
            yield unchecked(f"dit_blocks/{key}", "no such state here")
            continue
        yield judge(f"dit_blocks/{key}", absolute(states[key], stored[key]), STATE_LIMIT)


def _same(output: Tensor, stored: GoldenFile) -> bool:
    expected = stored["output"]
    return output.shape == expected.shape and torch.equal(output, expected)


def record_states(denoiser: MMDiT, calls: GoldenFile, case: str) -> dict[str, Tensor]:
    """Run one case and keep what flows through: names as in the golden file."""
    features = calls.numbered(f"{case}.text_features")
    sigma, mask = calls[f"{case}.timestep"], calls[f"{case}.text_mask"].bool()
    height, width = (int(side) for side in calls[f"{case}.hw"])
    states: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(_keeper(states, name))
        for name, module in _recorded_modules(denoiser)
    ]
    skipped, denoiser.skip_dead_text = denoiser.skip_dead_text, False
    try:
        tokens = calls[f"{case}.hidden_states"]
        output = denoiser.velocity(tokens, features, sigma, (height, width), mask)
    finally:
        denoiser.skip_dead_text = skipped
        for handle in handles:
            handle.remove()
    for index, norm in enumerate(denoiser.txt_norm):
        states[f"txt_norm.{index}"] = norm(features[index])
    modulation = denoiser.modulation(sigma)
    scale, shift = modulation.final.chunk(2, dim=-1)
    last = len(denoiser.transformer_blocks) - 1
    states["norm_out"] = adaptive_layer_norm(states[f"block{last}.img"], shift, scale)
    states["output"] = output
    for index, block in enumerate(denoiser.transformer_blocks):
        assert isinstance(block, MMDiTBlock)
        before = f"block{index - 1}" if index else ""
        image = states[f"{before}.img" if before else "img_in"]
        text = states[f"{before}.txt" if before else "txt_in"]
        pieces = {"img": (image, modulation.image[index]), "txt": (text, modulation.text[index])}
        for stream, (entering, vectors) in pieces.items():
            place = f"b{index}."
            states[f"{place}{stream}_mod"] = vectors
            states[f"{place}{stream}_norm1"] = getattr(block, f"{stream}_norm1")(entering)
            attended = states[f"{place}attn.{stream}_out"]
            middle = entering + vectors.chunk(6, dim=-1)[2][:, None] * attended
            states[f"{place}{stream}_norm2"] = getattr(block, f"{stream}_norm2")(middle)
        attention = block.get_submodule("attn")
        assert isinstance(attention, JointAttention)
        fused = (states[f"b{index}.attn.{stream}_qkv"] for stream in ("img", "txt"))
        for name, heads in attention.normed_heads(*fused).items():
            states[f"b{index}.attn.{name}"] = heads
    return states


def _recorded_modules(denoiser: MMDiT) -> Iterator[tuple[str, nn.Module]]:
    for name in ("img_in", "txt_in", "time_text_embed"):
        yield name, denoiser.get_submodule(name)
    for index, block in enumerate(denoiser.transformer_blocks):
        yield f"block{index}", block
        yield f"b{index}.attn", block.get_submodule("attn")
        for name in ("img_mlp", "txt_mlp"):
            yield f"b{index}.{name}", block.get_submodule(name)
        for name in ("img_qkv", "txt_qkv"):
            yield f"b{index}.attn.{name}", block.get_submodule(f"attn.{name}")


def _keeper(states: dict[str, Tensor], name: str) -> Any:
    """A hook that keeps an output; of a pair, the image part and the text part."""

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            states[name] = output
            return
        endings = (".img", ".txt") if name.startswith("block") else (".img_out", ".txt_out")
        for ending, part in zip(endings, output, strict=True):
            states[name + ending] = part

    return keep


def check_norms(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Norms on inputs so small that a wrong epsilon shows; and the weights they were made with."""
    stored = golden.tensors("norms.safetensors")
    for case in stored.cases("y"):
        x, expected = stored[f"{case}.x"], stored[f"{case}.y"]
        if case == "norm_out.norm":
            zero = x.new_zeros(1, x.shape[-1])
            got = adaptive_layer_norm(x[None], zero, zero)[0]
        else:
            norm = _norm(subject, case)
            if norm is None:
                yield unchecked(f"norms/{case}", "no such norm here")
                continue
            got = norm(x)
            if f"{case}.weight" in stored:
                weight = norm.get_parameter("weight")
                error = differing(weight, stored[f"{case}.weight"])
                yield judge(f"norms/{case} weight", error, 0, "values that differ")
        error = relative_by_row(got, expected)
        yield judge(f"norms/{case}", error, NORM_LIMIT, "relative to each row's largest value")
    yield from nothing_unread("norms", stored)


def _norm(subject: Subject, case: str) -> nn.Module | None:
    """The module that a case of `norms.safetensors` names; blocks and layers are the first."""
    component, _, rest = case.partition(".")
    vae = _VAE_NORM.fullmatch(rest)
    try:
        if component == "vae" and vae is not None:
            middle = subject.autoencoder.decoder.mid_block
            return middle.resnets[int(vae[1])].get_submodule(f"norm{vae[2]}")
        if component == "gpt_oss":
            return subject.encoder.model.layers[0].get_submodule(rest)
        if component == "txt_norm":
            return subject.denoiser.txt_norm[int(rest)]
        return subject.denoiser.transformer_blocks[0].get_submodule(case)
    except (AttributeError, IndexError, ValueError):
        return None
