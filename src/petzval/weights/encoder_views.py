"""The text encoder's tensors in their published form, from the files of four other programs.

ComfyUI keeps banks of experts the other way round and in NVFP4, llama.cpp and MLX keep gates and
ups apart, OpenAI's own files keep query, key and value together. Four-bit experts stay in four
bits.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.ggml import mxfp4_parts
from petzval.models.experts import PACKINGS
from petzval.weights.comfy_quant import QuantisedLayer, check_scales, quantised_layers, unpacked
from petzval.weights.expert_banks import published_experts
from petzval.weights.gguf_source import GgufSource
from petzval.weights.key_tables import ENCODER_GGUF, ENCODER_OPENAI
from petzval.weights.mlx_quant import mlx_mxfp4_parts, unpacked_mlx
from petzval.weights.source import (
    DerivedSource,
    DerivedTensor,
    Source,
    changed,
    derived,
    packing_of,
)

_BANK = re.compile(r"model\.layers\.\d+\.mlp\.experts\.(gate_up_proj|down_proj)")
_BANK_WEIGHT = re.compile(rf"{_BANK.pattern}\.weight")
_GGUF_EXPERTS = re.compile(
    r"(?P<name>blk\.(?P<i>\d+)\.ffn_(?:gate|up|down|gate_up)_exps)\.(?:weight|bias)"
)
_MLX_EXPERTS = re.compile(r"model\.layers\.(?P<i>\d+)\.mlp\.experts\.(?:gate|up)_proj\.weight")
_MLX_BANK, _MLX_PARTS = "model.layers.{i}.mlp.experts.{part}_proj", ("gate", "up", "down")


def encoder_view(
    source: Source,
    metadata: Mapping[str, str],
    settings: Mapping[str, Any] | None = None,
    *,
    keep: Collection[str] = PACKINGS,
) -> Source:
    """A text encoder from any of its files.

    Args:
        source: without prefix.
        metadata: of a safetensors file's header.
        settings: of its config.json, which may tell the groups of MLX's codes.
        keep: formats in which experts stay packed (NVFP4 of ComfyUI, MXFP4 of GGUF and MLX); in
            others they are decoded.

    Raises:
        CheckpointError: a quantised layer is damaged, or half of a pair is missing.
    """
    gguf = _gguf_below(source)
    if gguf is not None:
        return _encoder_from_gguf(source, gguf, keep=keep)
    if any(key.startswith("block.") for key in source):
        return _encoder_from_openai(source)
    if not any(key.startswith("model.") for key in source):
        names = {key: key if key.startswith("lm_head.") else f"model.{key}" for key in source}
        source = DerivedSource(source, [derived(source, key, names[key]) for key in source])
    source = _encoder_from_mlx(source, settings, keep=keep)
    return _encoder_from_comfyui(source, metadata, keep=keep)


def _gguf_below(source: Source) -> GgufSource | None:
    """The GGUF file that a source reads from, if it is one."""
    while isinstance(source, DerivedSource):
        source = source.base
    return source if isinstance(source, GgufSource) else None


# ── ComfyUI ───────────────────────────────────────────────────────────────────────────────────────


def _encoder_from_comfyui(
    source: Source, metadata: Mapping[str, str], *, keep: Collection[str]
) -> Source:
    """Expert banks [E, out, in] under `.weight`; the published form is [E, in, out]."""
    num_banks = sum(1 for key in source if _BANK_WEIGHT.fullmatch(key))
    if not num_banks:
        return unpacked(source, metadata)
    layers = quantised_layers(source, metadata)
    banks = [layer for layer in layers if _BANK.fullmatch(layer.name)]
    packed: list[QuantisedLayer] = []
    if "nvfp4" in keep and len(banks) == num_banks and {bank.kind for bank in banks} == {"nvfp4"}:
        packed = banks
    plain = unpacked(source, metadata, without={bank.name for bank in packed})
    tensors = [part for bank in packed for part in _nvfp4_parts(source, bank)]
    for key in plain:
        tensor, name = derived(plain, key), key
        owner, _, parameter = key.rpartition(".")
        if _BANK.fullmatch(owner) and parameter == "bias":
            tensor = derived(plain, key, f"{owner}_bias")
        elif _BANK.fullmatch(owner) and parameter == "weight" and len(tensor.shape) == 3:
            experts, outputs, inputs = tensor.shape
            tensor = changed(
                plain, derived(plain, key, owner), name, (experts, inputs, outputs), _transposed
            )
        tensors.append(tensor)
    return DerivedSource(plain, tensors)


def _transposed(bank: Tensor) -> Tensor:
    return bank.transpose(1, 2)


def _nvfp4_parts(source: Source, bank: QuantisedLayer) -> Iterable[DerivedTensor]:
    """Codes, tiles of scales and factors of a bank, as `models.experts` keeps them."""
    assert bank.scale is not None
    assert bank.factor is not None
    codes, scale, factor = bank.codes, bank.scale, bank.factor
    experts = source.infos[codes].shape[0]

    def tiles() -> Tensor:
        stored = source.read(scale).view(torch.float8_e4m3fn)
        check_scales(scale, source.infos[scale], stored)
        return stored.view(torch.uint8)

    kept = derived(source, codes, f"{bank.name}_codes")
    yield replace(kept, packing="nvfp4")
    yield replace(derived(source, scale, f"{bank.name}_tiles"), dtype="U8", load=tiles)
    yield replace(
        derived(source, factor, f"{bank.name}_factors"),
        shape=(experts,),
        dtype="F32",
        load=lambda: source.read(factor).float().reshape(-1).expand(experts).contiguous(),
    )


# ── GGUF ──────────────────────────────────────────────────────────────────────────────────────────


def _encoder_from_gguf(source: Source, gguf: GgufSource, *, keep: Collection[str]) -> Source:
    """llama.cpp keeps gates and ups apart, or one after the other."""
    layers: dict[str, set[str]] = {}
    for key in source:
        match = _GGUF_EXPERTS.fullmatch(key)
        if match is not None:
            layers.setdefault(match["i"], set()).add(match["name"])
    experts = {name for names in layers.values() for name in names}
    tensors = [
        derived(source, key, ENCODER_GGUF.to_ours(key))
        for key in source
        if key.rpartition(".")[0] not in experts
    ]

    def parts(key: str) -> tuple[Tensor, Tensor]:
        return mxfp4_parts(gguf.read_blocks(_name_in_file(gguf, key)))

    packed = _all_mxfp4(source, experts) and "mxfp4" in keep
    for i in sorted(layers, key=int):
        start = f"blk.{i}.ffn_"
        fused = f"{start}gate_up_exps"
        tensors += published_experts(
            source,
            f"model.layers.{i}.mlp.experts",
            [fused] if fused in layers[i] else [f"{start}gate_exps", f"{start}up_exps"],
            f"{start}down_exps",
            parts=parts if packed else None,
        )
    return DerivedSource(source, tensors)


def _all_mxfp4(source: Source, banks: Collection[str]) -> bool:
    keys = [f"{bank}.weight" for bank in banks if f"{bank}.weight" in source]
    return bool(keys) and all(packing_of(source.infos[key]) == "MXFP4" for key in keys)


def _name_in_file(gguf: GgufSource, key: str) -> str:
    """A tensor's name with the prefix that the file has before all of them."""
    return next(name for name in gguf.tensors if name == key or name.endswith(f".{key}"))


# ── MLX ───────────────────────────────────────────────────────────────────────────────────────────


def _encoder_from_mlx(
    source: Source, settings: Mapping[str, Any] | None, *, keep: Collection[str]
) -> Source:
    """MLX has published names, but for the experts, whose gates and ups are apart."""
    whole = unpacked_mlx(source, settings)
    layers = {match["i"] for key in whole if (match := _MLX_EXPERTS.fullmatch(key)) is not None}
    if not layers:
        return whole
    names = [[_MLX_BANK.format(i=i, part=part) for part in _MLX_PARTS] for i in layers]
    experts = {name for three in names for name in three}
    tensors = [derived(whole, key) for key in whole if key.rpartition(".")[0] not in experts]

    def parts(key: str) -> tuple[Tensor, Tensor]:
        return mlx_mxfp4_parts(source, key.removesuffix(".weight"))

    packed = _all_mxfp4(whole, experts) and "mxfp4" in keep
    for i in sorted(layers, key=int):
        gate, up, down = (_MLX_BANK.format(i=i, part=part) for part in _MLX_PARTS)
        owner = f"model.layers.{i}.mlp.experts"
        tensors += published_experts(
            whole, owner, [gate, up], down, parts=parts if packed else None
        )
    return DerivedSource(whole, tensors)


# ── OpenAI's own files ────────────────────────────────────────────────────────────────────────────


def _encoder_from_openai(source: Source) -> Source:
    tensors: list[DerivedTensor] = []
    for key in source:
        match = re.fullmatch(r"block\.(\d+)\.attn\.qkv\.(weight|bias)", key)
        if match is None:
            tensors.append(derived(source, key, ENCODER_OPENAI.to_ours(key)))
        else:
            tensors += _openai_thirds(source, key, match[1], match[2])
    return DerivedSource(source, tensors)


def _openai_thirds(source: Source, key: str, i: str, parameter: str) -> list[DerivedTensor]:
    """Query, key and value cut out of one matrix: all query heads, then key, then value heads."""
    info = source.infos[key]
    out, sinks = f"block.{i}.attn.out.weight", f"block.{i}.attn.sinks"
    for needed in (out, sinks):
        if needed not in source:
            raise CheckpointError(f"{info.file}: key {needed!r} is missing")
    queries = source.infos[out].shape[-1]
    others, odd = divmod(info.shape[0] - queries, 2)
    if odd or others <= 0:
        raise CheckpointError(
            f"{info.file}: key {key!r} has {info.shape[0]} rows, which are no {queries} of queries "
            "and twice as many of keys and values"
        )
    tensors: list[DerivedTensor] = []
    start = 0
    for name, rows in (("q_proj", queries), ("k_proj", others), ("v_proj", others)):
        tensor = derived(source, key, f"model.layers.{i}.self_attn.{name}.{parameter}")
        piece = replace(tensor, num_bytes=info.num_bytes * rows // info.shape[0])
        shape = (rows, *info.shape[1:])
        tensors.append(changed(source, piece, key, shape, lambda x, a=start, n=rows: x[a : a + n]))
        start += rows
    return tensors
