"""Numerics modes: whose noise, roundings and text handling a picture is made with.

Which published programs differ, and where:

    what                  default                 microsoft                comfyui
    ────────────────────  ──────────────────────  ───────────────────────  ──────────────────────
    noise                 float32 tokens, one     the network's dtype,     float32 channel-first
                          generator a picture     one draw for the batch   grid, one a picture
    noise level the       float32                 1000 sigma rounded,      sigma rounded, times
    network sees                                  then / 1000 rounded      1000 rounded
    latent state          float32                 the network's dtype      float32
    guidance              float32                 the network's dtype      float32
    token statistics      float32                 the autoencoder's dtype  float32
    long prompts          keep the suffix         lose the suffix          lose the suffix
    markers in a prompt   ordinary text           markers                  markers
    template date         2026-05-26              2026-05-26 (it prints    2026-05-23
                                                  today's: give the day)

A blank negative prompt means no text in every mode. (The original reads it through the template
where another prompt of the same batch has a negative with words: a picture would depend on its
neighbours.) The roundings matter in bfloat16 only; in float32 all three do the same arithmetic.
Pixels are truncated to 8 bits in every mode, as both programs do: equality with published pictures
was preferred to half a grey level. ComfyUI's own shift, fixed or linear, is a setting of its
workflows and not part of the mode; give `mu` to match one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from petzval.conditioning.template import DEFAULT_DATE

ParityName = Literal["default", "microsoft", "comfyui"]
Truncate = Literal["keep_tail", "reference"]
Markers = Literal["neutralise", "reference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """One column of the table above.

    Attributes:
        batch_noise: one generator draws the noise of all pictures of a request in turn.
        state_in_network_dtype: latents, guidance and token statistics are rounded like weights.
    """

    name: ParityName
    batch_noise: bool
    state_in_network_dtype: bool
    truncate: Truncate
    markers: Markers
    template_date: str


PARITIES: Mapping[str, Parity] = {
    "default": Parity(
        name="default",
        batch_noise=False,
        state_in_network_dtype=False,
        truncate="keep_tail",
        markers="neutralise",
        template_date=DEFAULT_DATE,
    ),
    "microsoft": Parity(
        name="microsoft",
        batch_noise=True,
        state_in_network_dtype=True,
        truncate="reference",
        markers="reference",
        template_date=DEFAULT_DATE,
    ),
    "comfyui": Parity(
        name="comfyui",
        batch_noise=False,
        state_in_network_dtype=False,
        truncate="reference",
        markers="reference",
        template_date="2026-05-23",
    ),
}
"""Name -> mode."""
