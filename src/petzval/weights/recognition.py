"""Which network a file holds: told by its keys, whatever stands before them or beside them.

Programs put words before every name (`model.diffusion_model.`, `_orig_mod.`), and ComfyUI saves
whole checkpoints as one file. So a network is where its signs are, and what stands before a sign
stands before all its names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from petzval.errors import CheckpointError
from petzval.weights.formats import KINDS, Kind
from petzval.weights.source import DerivedSource, Source, derived

TOKENIZER_KEY = "tokenizer_json"
"""ComfyUI's encoder files carry the tokenizer's file as a tensor of bytes."""

SIGNS: Mapping[Kind, tuple[str, ...]] = {
    "denoiser": (
        "transformer_blocks.0.img_mlp.w1.weight",
        "transformer_blocks.0.txt_mlp.w1.weight",
    ),
    "encoder": (
        "model.layers.0.self_attn.sinks",
        "layers.0.self_attn.sinks",
        "blk.0.attn_sinks.weight",
        "block.0.attn.sinks",
    ),
    "vae": ("bn.running_mean", "bn.running_var"),
}
"""Tensors that only this component has; one of them is enough, so that damage is told as damage."""

_STATISTICS_BELONG_TO = "decoder.conv_in.weight"
"""Many networks have batch-norm statistics somewhere inside; an autoencoder has this beside."""

_STRANGERS: tuple[tuple[str, str], ...] = (
    (".lora_A.weight", "a LoRA; give it with --lora"),
    (".lora_down.weight", "a LoRA; give it with --lora"),
    (".lokr_w1", "a LoKr; give it with --lora"),
    ("single_stream_modulation.lin.weight", "a denoiser of FLUX.2, not of Lens"),
    ("double_blocks.0.img_attn.qkv.weight", "a denoiser of FLUX.1, not of Lens"),
    ("decoder.conv_in.weight", "an autoencoder without FLUX.2's token statistics (bn)"),
    ("input_blocks.0.0.weight", "a UNet of Stable Diffusion"),
    ("layers.0.self_attn.q_proj.weight", "a language model, but not GPT-OSS"),
    ("blk.0.attn_q.weight", "a language model, but not GPT-OSS"),
)
"""Ends of keys → what else a file may be."""


_HINT = "a denoiser, a GPT-OSS text encoder or a FLUX.2 autoencoder is recognised by its keys"


def homes(keys: Iterable[str]) -> dict[Kind, tuple[str, ...]]:
    """The networks that a file holds, each with what stands before its names ("" for nothing)."""
    names = frozenset(keys)
    found: dict[Kind, tuple[str, ...]] = {}
    for kind in KINDS:
        prefixes = {
            prefix
            for key in names
            if (prefix := _before(key, SIGNS[kind])) is not None
            and (kind != "vae" or not prefix or f"{prefix}{_STATISTICS_BELONG_TO}" in names)
        }
        if prefixes:
            found[kind] = tuple(sorted(prefixes, key=len, reverse=True))
    return found


def one_network(source: Source, path: Path, expected: Kind | None) -> tuple[Kind, Source]:
    """The network that a file holds, or that one of several which is expected, without prefix.

    Raises:
        CheckpointError: none, or another, or several; says what it is instead where that is known.
    """
    found = homes(source)
    if not found:
        raise _stranger(source, path)
    kind = next(iter(found)) if len(found) == 1 else expected
    bare = [each for each, prefixes in found.items() if "" in prefixes]
    if kind is None or kind not in found or len(bare) > 1:
        raise CheckpointError(
            f"{path}: holds {' and '.join(articled(each) for each in found)}",
            "name a file for each component, or say which one with --part",
        )
    if expected is not None and kind != expected:
        raise CheckpointError(
            f"{path}: this is {articled(kind)}, expected {articled(expected)}",
            f"give it with --{kind}",
        )
    return kind, _own(source, kind, found)


def articled(kind: Kind) -> str:
    """The network in a sentence."""
    return {"denoiser": "a denoiser", "encoder": "a text encoder", "vae": "an autoencoder"}[kind]


def _before(key: str, signs: Iterable[str]) -> str | None:
    """What stands before a sign, if the key is one."""
    for sign in signs:
        if key == sign:
            return ""
        if key.endswith(f".{sign}"):
            return key.removesuffix(sign)
    return None


def _own(source: Source, kind: Kind, found: Mapping[Kind, tuple[str, ...]]) -> Source:
    """A network's keys without what stands before them; all keys, where it is alone in the file."""
    prefixes, alone = found[kind], len(found) == 1
    if alone and prefixes == ("",):
        return source
    others = tuple(p for each, ps in found.items() if each != kind for p in ps if p)
    names: dict[str, str] = {}
    for key in source:
        prefix = next((each for each in prefixes if key.startswith(each)), None)
        if key.rpartition(".")[2] == TOKENIZER_KEY:
            if alone or kind == "encoder":
                names[key] = TOKENIZER_KEY
        elif prefix or (prefix == "" and not key.startswith(others)):
            names[key] = key.removeprefix(prefix)
        elif alone:
            names[key] = key
    return DerivedSource(source, [derived(source, key, name) for key, name in names.items()])


def _stranger(source: Source, path: Path) -> CheckpointError:
    for end, what in _STRANGERS:
        if any(key.endswith(end) for key in source):
            return CheckpointError(
                f"{path}: this is {what}",
                _HINT,
            )
    first = next(iter(source), None)
    keys = "holds no tensors" if first is None else f"its keys begin with {first[:200]!r}"
    return CheckpointError(
        f"{path}: no component of Lens; {keys}",
        _HINT,
    )
