"""The text encoder's tensors in their published form, from the files of three other programs.

ComfyUI keeps banks of experts the other way round and in NVFP4, llama.cpp keeps gates and ups
apart, OpenAI's own files keep query, key and value together. Four-bit experts stay in four bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from petzval.errors import CheckpointError
from petzval.kernels.ggml import mxfp4_parts
from petzval.models.experts import PACKINGS
from petzval.weights.comfy_quant import QuantisedLayer, check_scales, quantised_layers, unpacked
from petzval.weights.gguf_source import GgufSource
from petzval.weights.key_tables import ENCODER_GGUF, ENCODER_OPENAI
from petzval.weights.source import (
    DerivedSource,
    DerivedTensor,
    Source,
    changed,
    derived,
    joined,
    packing_of,
)

_BANK = re.compile(r"model\.layers\.\d+\.mlp\.experts\.(gate_up_proj|down_proj)")
_GGUF_EXPERTS = re.compile(r"blk\.(?P<i>\d+)\.ffn_(?P<part>gate|up|down|gate_up)_exps\.weight")


def encoder_view(
    source: Source, metadata: Mapping[str, str], *, keep: Collection[str] = PACKINGS
) -> Source:
    """A text encoder from any of its files.

    Args:
        source: without prefix.
        metadata: of a safetensors file's header.
        keep: formats in which experts stay packed (NVFP4 of ComfyUI, MXFP4 of GGUF); in others
            they are decoded.

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
    if not any(_BANK.fullmatch(key.removesuffix(".weight")) for key in source):
        return unpacked(source, metadata)
    layers = quantised_layers(source, metadata)
    banks = [layer for layer in layers if _BANK.fullmatch(layer.name)]
    num_banks = sum(1 for key in source if _BANK.fullmatch(key.removesuffix(".weight")))
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
    """llama.cpp keeps gates and ups apart, or one after the other; published, they alternate."""
    experts = {
        key: (match["i"], match["part"])
        for key in source
        if (match := _GGUF_EXPERTS.fullmatch(key)) is not None
    }
    biases = {
        key.removesuffix("weight") + "bias" for key, (_, part) in experts.items() if part != "down"
    }
    tensors = [
        derived(source, key, ENCODER_GGUF.to_ours(key))
        for key in source
        if key not in experts and key not in biases
    ]
    packed = (
        "mxfp4" in keep
        and bool(experts)
        and all(packing_of(source.infos[key]) == "MXFP4" for key in experts)
    )
    for i in sorted({i for i, _ in experts.values()}, key=int):
        tensors += _gguf_layer(source, gguf, i, packed=packed)
    return DerivedSource(source, tensors)


def _gguf_layer(source: Source, gguf: GgufSource, i: str, *, packed: bool) -> list[DerivedTensor]:
    """The experts of one layer."""
    owner, block = f"model.layers.{i}.mlp.experts", f"blk.{i}."
    fused = f"{block}ffn_gate_up_exps"
    up = (
        [fused] if f"{fused}.weight" in source else [f"{block}ffn_gate_exps", f"{block}ffn_up_exps"]
    )
    tensors: list[DerivedTensor] = []
    for name, pieces in (("gate_up_proj", up), ("down_proj", [f"{block}ffn_down_exps"])):
        for piece in pieces:
            for parameter in ("weight", "bias"):
                if f"{piece}.{parameter}" not in source:
                    raise CheckpointError(
                        f"{source.files[0]}: key '{piece}.{parameter}' is missing",
                        "download or convert the file again",
                    )
        keys = [f"{piece}.weight" for piece in pieces]
        order = _alternating if name == "gate_up_proj" else _same
        tensors += _gguf_bank(source, gguf, f"{owner}.{name}", keys, order, packed=packed)
        if name == "gate_up_proj":
            bias_keys = [f"{piece}.bias" for piece in pieces]
            shape = source.infos[bias_keys[0]].shape
            shape = (shape[0], shape[1] * len(pieces))
            tensors.append(joined(source, f"{owner}.{name}_bias", bias_keys, shape, order))
    return tensors


def _gguf_bank(
    source: Source,
    gguf: GgufSource,
    name: str,
    keys: list[str],
    order: Callable[[list[Tensor]], Tensor],
    *,
    packed: bool,
) -> list[DerivedTensor]:
    shapes = [source.infos[key].shape for key in keys]
    if any(len(shape) != 3 or shape != shapes[0] for shape in shapes):
        raise CheckpointError(
            f"{source.files[0]}: key {keys[0]!r} has shape {list(shapes[0])}, which does not fit "
            "a bank of experts or its other half"
        )
    experts, rows, columns = shapes[0]
    rows *= len(keys)
    if not packed:
        whole = joined(
            source,
            name,
            keys,
            (experts, columns, rows),
            lambda parts: order(parts).transpose(1, 2).to(torch.bfloat16),
            "BF16",
        )
        return [whole]
    size = sum(source.infos[key].num_bytes for key in keys)
    names = [_name_in_file(gguf, key) for key in keys]

    def part(index: int) -> Callable[[], Tensor]:
        return lambda: order([mxfp4_parts(gguf.read_blocks(name))[index] for name in names])

    blocks = DerivedTensor(
        key=f"{name}_blocks",
        file=source.files[0],
        shape=(experts, rows, columns // 32, 16),
        dtype="U8",
        num_bytes=size // 17 * 16,
        load=part(0),
        packing="MXFP4",
    )
    scales = replace(
        blocks, key=f"{name}_scales", shape=blocks.shape[:3], num_bytes=size // 17, load=part(1)
    )
    return [blocks, scales]


def _name_in_file(gguf: GgufSource, key: str) -> str:
    """A tensor's name with the prefix that the file has before all of them."""
    return next(name for name in gguf.tensors if name == key or name.endswith(f".{key}"))


def _alternating(parts: list[Tensor]) -> Tensor:
    """Gates and ups (two tensors, or the halves of one) → gate 0, up 0, gate 1, up 1 …, by rows."""
    gates, ups = parts if len(parts) == 2 else parts[0].chunk(2, dim=1)
    return torch.stack((gates, ups), dim=2).flatten(1, 2)


def _same(parts: list[Tensor]) -> Tensor:
    return parts[0]


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
