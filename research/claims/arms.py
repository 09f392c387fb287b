"""What is compared, and the protocol that all arms share."""

from __future__ import annotations

from dataclasses import dataclass, field

from petzval.data.miniature.captions import CaptionKind
from petzval.data.miniature.world import LARGE, SMALL, TALL, WIDE, Canvas
from petzval.models.mmdit import MMDiTConfig

LAST = 3
"""The last of the four layers of the shipped text encoder, all of which mini reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way of training; the base arm with one thing changed.

    Attributes:
        captions: what the pictures are described with.
        canvases: sizes of picture, drawn alike often.
        layers: of the text encoder. A layer may be named more than once: four times the last one
            gives a denoiser of exactly as many parameters, which reads nothing but that layer.
    """

    name: str
    captions: CaptionKind = "dense"
    canvases: tuple[Canvas, ...] = (SMALL, LARGE, WIDE)
    layers: tuple[int, ...] = (0, 1, 2, 3)


BASE = Arm(name="base")
ARMS = (
    BASE,
    Arm(name="brief", captions="brief"),
    Arm(name="mixed", captions="mixed"),
    Arm(name="single size", canvases=(SMALL,)),
    Arm(name="last layer", layers=(LAST,) * 4),
)

TRIED_SIZES = (SMALL, LARGE, WIDE, TALL)
"""Sizes that every arm is asked for; no arm was trained on the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """Everything but the arm and the seed.

    Attributes:
        max_things: scenes have one or two things, both alike often.
        held_out: one in so many scenes is never trained on; prompts are made of those.
        batch_tokens: image tokens a step, whatever the size: 32 small pictures, 14 large ones.
        cooldown: share of the run, at its end, in which the learning rate falls to nothing.
        checkpoints: the arms are tried so many times, at equal distances.
        num_prompts: of each kind (dense, brief), the same for all arms and seeds.
    """

    num_steps: int = 1600
    batch_tokens: int = 512
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    cooldown: float = 0.3
    ema_decay: float = 0.99
    text_dropout: float = 0.1
    num_blocks: int = 3
    num_heads: int = 2
    head_dim: int = 32
    axes: tuple[int, int, int] = (4, 14, 14)
    max_things: int = 2
    held_out: int = 8
    checkpoints: int = 4
    num_prompts: int = 64
    sampling_steps: int = 10
    guidance: float = 2.0
    seeds: tuple[int, ...] = field(default=(0, 1, 2))

    def denoiser(self, arm: Arm, encoder_width: int) -> MMDiTConfig:
        """The real denoiser, small: tokens of 3 x 3 pixels in place of latents."""
        return MMDiTConfig(
            num_layers=self.num_blocks,
            num_attention_heads=self.num_heads,
            attention_head_dim=self.head_dim,
            axes_dims_rope=self.axes,
            in_channels=27,
            out_channels=3,
            patch_size=3,
            enc_hidden_dim=encoder_width,
            selected_layer_index=arm.layers,
        )


PROTOCOL = Protocol()
