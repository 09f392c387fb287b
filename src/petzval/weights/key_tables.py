"""Every name that another program gives to a tensor of Lens, as tables.

Published names stand on the left. What is not only a name (a matrix that others keep in pieces or
in another order) is in `views`. Prefixes of whole files are taken off before (`recognition`).
"""

from __future__ import annotations

from collections.abc import Mapping

from petzval.weights.key_map import KeyMap, Row


def _resnet(ours: str, theirs: str, *, changes_width: bool = False) -> list[Row]:
    """The pieces of one resnet."""
    pieces = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
    if changes_width:
        pieces["conv_shortcut"] = "nin_shortcut"
    return [Row(ours=f"{ours}.{a}.{{p}}", theirs=f"{theirs}.{b}.{{p}}") for a, b in pieces.items()]


def _middle(side: str) -> list[Row]:
    """The two resnets and the attention at the lowest resolution."""
    rows: list[Row] = []
    for ours, theirs in (("0", "1"), ("1", "2")):
        rows += _resnet(f"{side}.mid_block.resnets.{ours}", f"{side}.mid.block_{theirs}")
    pieces = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    rows += [
        Row(ours=f"{side}.mid_block.attentions.0.{a}.{{p}}", theirs=f"{side}.mid.attn_1.{b}.{{p}}")
        for a, b in pieces.items()
    ]
    return rows


def _ends(side: str) -> list[Row]:
    """First and last layers, and the 1 x 1 convolution beside the latents."""
    quant = "quant_conv" if side == "encoder" else "post_quant_conv"
    return [
        Row(ours=f"{side}.conv_in.{{p}}", theirs=f"{side}.conv_in.{{p}}"),
        Row(ours=f"{side}.conv_norm_out.{{p}}", theirs=f"{side}.norm_out.{{p}}"),
        Row(ours=f"{side}.conv_out.{{p}}", theirs=f"{side}.conv_out.{{p}}"),
        Row(ours=f"{quant}.{{p}}", theirs=f"{side}.{quant}.{{p}}"),
        Row(ours=f"{quant}.{{p}}", theirs=f"{quant}.{{p}}"),  # as ComfyUI saves it again
    ]


VAE_ORIGINAL = KeyMap(
    [
        *_ends("encoder"),
        *_ends("decoder"),
        *_middle("encoder"),
        *_middle("decoder"),
        *_resnet(
            "encoder.down_blocks.{i}.resnets.{j}", "encoder.down.{i}.block.{j}", changes_width=True
        ),
        Row(
            ours="encoder.down_blocks.{i}.downsamplers.0.conv.{p}",
            theirs="encoder.down.{i}.downsample.conv.{p}",
        ),
        *_resnet(
            "decoder.up_blocks.{i}.resnets.{j}", "decoder.up.{i!3}.block.{j}", changes_width=True
        ),
        Row(
            ours="decoder.up_blocks.{i}.upsamplers.0.conv.{p}",
            theirs="decoder.up.{i!3}.upsample.conv.{p}",
        ),
        Row(ours="bn.running_mean", theirs="bn.running_mean"),
        Row(ours="bn.running_var", theirs="bn.running_var"),
        Row(ours="bn.num_batches_tracked", theirs="bn.num_batches_tracked"),
    ]
)
"""The autoencoder as FLUX.2 was published, which is ComfyUI's `flux2-vae.safetensors`."""

VAE_POINTWISE = tuple(
    f"mid_block.attentions.0.{name}.weight" for name in ("to_q", "to_k", "to_v", "to_out.0")
)
"""Ends of names: matrices with us, 1 x 1 convolutions in the original."""

_ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}

ENCODER_GGUF = KeyMap(
    [
        Row(ours="model.embed_tokens.weight", theirs="token_embd.weight"),
        Row(ours="model.norm.weight", theirs="output_norm.weight"),
        Row(ours="lm_head.weight", theirs="output.weight"),
        Row(ours="model.layers.{i}.input_layernorm.weight", theirs="blk.{i}.attn_norm.weight"),
        Row(
            ours="model.layers.{i}.post_attention_layernorm.weight",
            theirs="blk.{i}.post_attention_norm.weight",
        ),
        *(
            Row(ours=f"model.layers.{{i}}.self_attn.{a}.{{p}}", theirs=f"blk.{{i}}.{b}.{{p}}")
            for a, b in _ATTENTION.items()
        ),
        Row(ours="model.layers.{i}.self_attn.sinks", theirs="blk.{i}.attn_sinks.weight"),
        Row(ours="model.layers.{i}.mlp.router.{p}", theirs="blk.{i}.ffn_gate_inp.{p}"),
        Row(
            ours="model.layers.{i}.mlp.experts.down_proj_bias", theirs="blk.{i}.ffn_down_exps.bias"
        ),
    ]
)
"""GPT-OSS as llama.cpp names it; the experts' matrices are joined."""

ENCODER_OPENAI = KeyMap(
    [
        Row(ours="model.embed_tokens.weight", theirs="embedding.weight"),
        Row(ours="model.norm.weight", theirs="norm.scale"),
        Row(ours="lm_head.weight", theirs="unembedding.weight"),
        Row(ours="model.layers.{i}.input_layernorm.weight", theirs="block.{i}.attn.norm.scale"),
        Row(
            ours="model.layers.{i}.post_attention_layernorm.weight",
            theirs="block.{i}.mlp.norm.scale",
        ),
        Row(ours="model.layers.{i}.self_attn.o_proj.{p}", theirs="block.{i}.attn.out.{p}"),
        Row(ours="model.layers.{i}.self_attn.sinks", theirs="block.{i}.attn.sinks"),
        Row(ours="model.layers.{i}.mlp.router.{p}", theirs="block.{i}.mlp.gate.{p}"),
        *(
            Row(
                ours=f"model.layers.{{i}}.mlp.experts.{a}_{c}",
                theirs=f"block.{{i}}.mlp.{b}_{d}",
            )
            for a, b in (("gate_up_proj", "mlp1"), ("down_proj", "mlp2"))
            for c, d in (("bias", "bias"), ("blocks", "weight.blocks"), ("scales", "weight.scales"))
        ),
    ]
)
"""GPT-OSS in OpenAI's own form, the `original/` folder; query, key and value are cut apart."""

DENOISER_MLX = KeyMap(
    [
        Row(
            ours=f"transformer_blocks.{{i}}.{stream}_mod.1.{{p}}",
            theirs=f"transformer_blocks.{{i}}.{stream}_mod.{{p}}",
        )
        for stream in ("img", "txt")
    ]
)
"""Where the denoiser's names in MLX's files are other than the published ones."""

DENOISER_SPLIT: Mapping[str, tuple[str, int]] = {
    "to_q": ("img_qkv", 0),
    "to_k": ("img_qkv", 1),
    "to_v": ("img_qkv", 2),
    "add_q_proj": ("txt_qkv", 0),
    "add_k_proj": ("txt_qkv", 1),
    "add_v_proj": ("txt_qkv", 2),
}
"""Layers of the denoiser that others keep apart → the fused layer, and which third of its rows."""
