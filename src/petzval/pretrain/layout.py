"""Which modules of the networks are sharded, compiled and recomputed on their own."""

from __future__ import annotations

from petzval.models.mmdit import MMDiTConfig
from petzval.training.parallel import Layout

# Nothing reads the last block's text, so all that only writes it takes no gradient.
_LAST_TEXT = (
    "attn.norm_added_q.weight",
    "attn.to_add_out.*",
    "attn.to_add_out.pair.*",
    "txt_norm2.weight",
    "txt_mlp.*.weight",
    "txt_mlp.*.pair.*",
)

_TEXT_BLOCK = (
    "txt_mod.*.*",
    "txt_mod.*.pair.*",
    "txt_norm1.weight",
    "attn.txt_qkv.*",
    "attn.txt_qkv.pair.*",
    "attn.norm_added_k.weight",
    *_LAST_TEXT,
)

TEXT_STREAM = (
    "txt_norm.*.weight",
    "txt_in.*",
    "txt_in.pair.*",
    *(f"transformer_blocks.*.{name}" for name in _TEXT_BLOCK),
)
"""Parameters, a LoRA's halves (`pair`) among them, that a batch without any text does not reach."""


def denoiser_layout(config: MMDiTConfig) -> Layout:
    """Of a `models.mmdit.MMDiT` of these sizes."""
    last = f"transformer_blocks.{config.num_layers - 1}"
    return Layout(
        blocks=("transformer_blocks.*",),
        # All blocks' modulations are evaluated before the first block runs.
        units=("transformer_blocks.*.img_mod", "transformer_blocks.*.txt_mod"),
        idle=tuple(f"{last}.{name}" for name in _LAST_TEXT),
    )
