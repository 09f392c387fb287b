"""The names that LoRA files give to the denoiser's layers, family by family.

    peft       base_model.model.transformer_blocks.0.attn.img_qkv.lora_A.weight
    diffusers  transformer.transformer_blocks.0.attn.img_qkv.lora_A.weight
    comfyui    diffusion_model.transformer_blocks.0.attn.img_qkv.lora_A.weight
    kohya      lora_unet_transformer_blocks_0_attn_img_qkv.lora_down.weight, with .alpha

Each also with `lora_down` / `lora_up` for `lora_A` / `lora_B`, and with LyCORIS' LoKr parts
(`lokr_w1`, `lokr_w2`, or their halves `_a`, `_b`). Query, key and value may be apart
(`attn.to_q` … of the image, `attn.add_q_proj` … of the text): thirds of one fused layer here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from petzval.weights.key_tables import DENOISER_SPLIT

Family = Literal["peft", "diffusers", "comfyui", "kohya"]
"""Who reads the keys."""

Role = Literal[
    "down", "up", "alpha", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"
]
"""What a tensor is to its layer: half of a product, a scale, a factor of a Kronecker product."""

KOHYA_PREFIX = "lora_unet_"
PREFIXES: Mapping[Family, str] = {
    "peft": "base_model.model.",
    "diffusers": "transformer.",
    "comfyui": "diffusion_model.",
    "kohya": KOHYA_PREFIX,
}
"""Family → what stands before a layer's name when a file is written."""

_DOTTED_PREFIXES = (
    "base_model.model.transformer.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "",
)
_FLAT_PREFIXES = (KOHYA_PREFIX, "lora_transformer_", "lycoris_")
_TEXT_ENCODER_PREFIXES = ("text_encoder", "text_model", "lora_te", "lycoris_te", "te_", "te1_")

_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    # PEFT puts the adapter's name between the half and `weight` while it holds several.
    (re.compile(r"\.lora_A(\.[^.]+)?\.weight$"), "down"),
    (re.compile(r"\.lora_B(\.[^.]+)?\.weight$"), "up"),
    (re.compile(r"\.lora[_.]down\.weight$"), "down"),
    (re.compile(r"\.lora[_.]up\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.lokr_w1$"), "lokr_w1"),
    (re.compile(r"\.lokr_w1_a$"), "lokr_w1_a"),
    (re.compile(r"\.lokr_w1_b$"), "lokr_w1_b"),
    (re.compile(r"\.lokr_w2$"), "lokr_w2"),
    (re.compile(r"\.lokr_w2_a$"), "lokr_w2_a"),
    (re.compile(r"\.lokr_w2_b$"), "lokr_w2_b"),
)


OTHER_KINDS: Mapping[str, str] = {
    **dict.fromkeys((".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"), "a LoHa"),
    **dict.fromkeys((".oft_blocks", ".oft_R.weight", ".oft_diag"), "OFT, a rotation"),
    **dict.fromkeys((".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"), "a GLoRA"),
    **dict.fromkeys((".diff", ".diff_b"), "a difference of whole weights or biases"),
    **dict.fromkeys((".lora_B.bias", ".lora_up.bias"), "a LoRA of biases"),
    **dict.fromkeys((".lokr_t2", ".lora_mid.weight"), "a layer of convolutions"),
    **dict.fromkeys((".ia3_l", ".on_input"), "IA3"),
}
"""Ends of keys → what changes layers in another way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraKey:
    """What a key says.

    Attributes:
        layer: name of one of the denoiser's linear layers.
        third: rows of a fused query-key-value layer (0 query, 1 key, 2 value); None for all rows.
    """

    layer: str
    third: int | None
    role: Role


class LayerNames:
    """All spellings of a denoiser's linear layers.

    Args:
        layers: names as in the denoiser, such as `transformer_blocks.0.attn.img_qkv`.
    """

    def __init__(self, layers: Iterable[str]) -> None:
        self._dotted: dict[str, tuple[str, int | None]] = {}
        for layer in layers:
            self._dotted[layer] = (layer, None)
            owner, _, name = layer.rpartition(".")
            for split, (fused, third) in DENOISER_SPLIT.items():
                if name == fused:
                    self._dotted[f"{owner}.{split}"] = (layer, third)
        # Underscores for dots cannot be undone, so the flat spellings are looked up.
        self._flat = {name.replace(".", "_"): place for name, place in self._dotted.items()}

    def parse(self, key: str) -> LoraKey | None:
        """What a key says; None if it belongs to nothing here."""
        for pattern, role in _ROLES:
            match = pattern.search(key)
            if match is None:
                continue
            place = self._place(key[: match.start()])
            if place is None:
                return None
            layer, third = place
            return LoraKey(layer=layer, third=third, role=role)
        return None

    def _place(self, name: str) -> tuple[str, int | None] | None:
        for prefix in _DOTTED_PREFIXES:
            if name.startswith(prefix) and name[len(prefix) :] in self._dotted:
                return self._dotted[name[len(prefix) :]]
        for prefix in _FLAT_PREFIXES:
            if name.startswith(prefix) and name[len(prefix) :] in self._flat:
                return self._flat[name[len(prefix) :]]
        return None


def is_for_text_encoder(key: str) -> bool:
    """Whether a key that belongs to nothing here is one of a text encoder's LoRA."""
    for prefix in ("base_model.model.", ""):
        if key.removeprefix(prefix).startswith(_TEXT_ENCODER_PREFIXES):
            return True
    return False


def spell(layer: str, half: Literal["down", "up"], family: Family) -> str:
    """The key of one half of a layer's LoRA."""
    if family == "kohya":
        return f"{PREFIXES[family]}{layer.replace('.', '_')}.lora_{half}.weight"
    letter = "A" if half == "down" else "B"
    return f"{PREFIXES[family]}{layer}.lora_{letter}.weight"


def spell_alpha(layer: str, family: Family) -> str | None:
    """The key of a layer's alpha; None where the family keeps it outside the tensors."""
    if family in ("peft", "diffusers"):
        return None
    name = layer.replace(".", "_") if family == "kohya" else layer
    return f"{PREFIXES[family]}{name}.alpha"
