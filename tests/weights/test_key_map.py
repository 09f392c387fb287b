"""The tables of names, complete in both directions, against the published architecture."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from petzval.weights.key_map import KeyMap, Row
from petzval.weights.key_tables import (
    DENOISER_MLX,
    DENOISER_SPLIT,
    ENCODER_GGUF,
    ENCODER_OPENAI,
    VAE_ORIGINAL,
    VAE_POINTWISE,
)
from tests.support import golden_json


def published(component: str) -> list[str]:
    return list(golden_json(f"manifests/{component}.json")["keys"])


JOINED = ("gate_up_proj", "down_proj_blocks", "down_proj_scales")
TABLES: list[tuple[str, KeyMap, str, Sequence[str]]] = [
    ("vae", VAE_ORIGINAL, "vae", ()),
    ("gguf", ENCODER_GGUF, "text_encoder_mxfp4", JOINED),
    ("openai", ENCODER_OPENAI, "text_encoder_mxfp4", ("q_proj", "k_proj", "v_proj")),
]


@pytest.mark.parametrize(("name", "table", "component", "elsewhere"), TABLES)
def test_every_published_name_has_another_and_comes_back(
    name: str, table: KeyMap, component: str, elsewhere: Sequence[str]
) -> None:
    keys = [key for key in published(component) if not any(part in key for part in elsewhere)]
    theirs = [table.to_theirs(key) for key in keys]
    assert None not in theirs
    assert len(set(theirs)) == len(keys) > 150, name
    assert [table.to_ours(key or "") for key in theirs] == keys


@pytest.mark.parametrize(("name", "table", "component", "elsewhere"), TABLES)
def test_every_row_is_used(
    name: str, table: KeyMap, component: str, elsewhere: Sequence[str]
) -> None:
    del name, elsewhere
    idle = [
        row
        for row in table.rows
        if not any(KeyMap([row]).to_theirs(key) for key in published(component))
    ]
    assert idle == []


@pytest.mark.parametrize(
    ("table", "ours", "theirs"),
    [
        # Checked once against diffusers' own conversion of the same file.
        (
            VAE_ORIGINAL,
            "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
            "decoder.up.1.block.0.nin_shortcut.weight",
        ),
        (
            VAE_ORIGINAL,
            "encoder.mid_block.attentions.0.to_out.0.bias",
            "encoder.mid.attn_1.proj_out.bias",
        ),
        (VAE_ORIGINAL, "quant_conv.weight", "encoder.quant_conv.weight"),
        (VAE_ORIGINAL, "bn.running_var", "bn.running_var"),
        (ENCODER_GGUF, "model.layers.7.self_attn.sinks", "blk.7.attn_sinks.weight"),
        (ENCODER_GGUF, "model.layers.7.self_attn.o_proj.bias", "blk.7.attn_output.bias"),
        (
            ENCODER_OPENAI,
            "model.layers.3.mlp.experts.gate_up_proj_blocks",
            "block.3.mlp.mlp1_weight.blocks",
        ),
    ],
)
def test_a_few_names_by_hand(table: KeyMap, ours: str, theirs: str) -> None:
    assert table.to_theirs(ours) == theirs
    assert table.to_ours(theirs) == ours


def test_the_denoisers_names_in_mlx_are_the_published_ones_but_for_modulation() -> None:
    keys = published("transformer")
    theirs = [DENOISER_MLX.to_theirs(key) or key for key in keys]
    assert len(set(theirs)) == len(keys)
    assert [DENOISER_MLX.to_ours(key) or key for key in theirs] == keys
    assert sum(one != other for one, other in zip(keys, theirs, strict=True)) == 4 * 48


def test_names_that_belong_to_nothing() -> None:
    assert VAE_ORIGINAL.to_ours("decoder.up.4.block.0.norm1.weight") is None
    assert VAE_ORIGINAL.to_ours("decoder.up.0.block.0.norm1.weights") is None
    assert VAE_ORIGINAL.to_theirs("decoder.up_blocks.9.resnets.0.norm1.weight") is None
    assert ENCODER_GGUF.to_ours("blk.x.attn_norm.weight") is None
    table = KeyMap([Row(ours="a.{i}.{p}", theirs="b.{p}.{i}")])
    assert table.to_theirs("a.12.bias") == "b.bias.12"
    assert table.to_ours("b.bias.123456") is None


def test_what_is_no_name_alone_is_in_the_architecture() -> None:
    vae, denoiser = published("vae"), published("transformer")
    assert all(sum(key.endswith(end) for key in vae) == 2 for end in VAE_POINTWISE)
    fused = {layer for layer, _ in DENOISER_SPLIT.values()}
    assert all(f"transformer_blocks.0.attn.{layer}.weight" in denoiser for layer in fused)
