"""What is measured: sizes of networks and pictures, steps, guidance, pictures at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from petzval.errors import RequestError
from petzval.models.gpt_oss import GptOssConfig
from petzval.models.mmdit import MMDiTConfig
from petzval.models.sizes import (
    LENS_GPT_OSS,
    LENS_MMDIT,
    LENS_VAE,
    MINI_GPT_OSS,
    MINI_MMDIT,
    MINI_VAE,
)
from petzval.models.vae import AutoencoderConfig
from petzval.resolution import PIXELS_PER_TOKEN

_VOCABULARY = 4096
_MOST_TEXT_TOKENS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The three networks of a checkpoint."""

    encoder: GptOssConfig
    denoiser: MMDiTConfig
    autoencoder: AutoencoderConfig


SIZES = {
    "mini": Sizes(encoder=MINI_GPT_OSS, denoiser=MINI_MMDIT, autoencoder=MINI_VAE),
    "lens": Sizes(encoder=LENS_GPT_OSS, denoiser=LENS_MMDIT, autoencoder=LENS_VAE),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One row of the table.

    Attributes:
        model: mini or lens, for the sizes.
        height, width: in pixels, multiples of 16.
        steps, guidance: of the sampler, Euler.
        steps_measured: the first so many of them; 0 measures all. Fewer are extrapolated, and
            labelled.
        batch: pictures that run together.
        text_tokens: of each prompt, behind the template's 97.
        blocks: of the denoiser that are built; 0 builds all. Fewer are extrapolated, and labelled.
        encoder_layers: of the text encoder; 0 builds all that are read.
        dtype: of the networks.
        rounds: how often each way is measured after its warm-up.

    Raises:
        RequestError: a value out of range.
    """

    model: str = "mini"
    height: int = 256
    width: int = 256
    steps: int = 4
    guidance: float = 1.0
    batch: int = 1
    text_tokens: int = 40
    blocks: int = 0
    encoder_layers: int = 0
    dtype: str = "float32"
    rounds: int = 3
    steps_measured: int = 0

    def __post_init__(self) -> None:
        if self.model not in SIZES:
            raise RequestError(
                f"there are no sizes named {self.model!r}", f"known: {', '.join(SIZES)}"
            )
        if min(self.height, self.width) < 16 or self.height % 16 or self.width % 16:
            raise RequestError(
                f"{self.width}x{self.height} is not on the 16-pixel grid", "try 256x256"
            )
        if min(self.steps, self.batch, self.text_tokens, self.rounds) < 1:
            raise RequestError("steps, batch, text tokens and rounds are at least 1")
        if self.text_tokens > _MOST_TEXT_TOKENS:
            raise RequestError(
                f"{self.text_tokens:,} text tokens are more than the {_MOST_TEXT_TOKENS:,} measured"
            )
        if not 0 <= self.steps_measured <= self.steps:
            raise RequestError(f"{self.steps_measured} of {self.steps} steps cannot be measured")
        if self.guidance < 0:
            raise RequestError(f"guidance {self.guidance} must not be negative")
        if self.dtype not in ("float32", "bfloat16"):
            raise RequestError(f"dtype {self.dtype!r} is neither float32 nor bfloat16")
        built, read = SIZES[self.model].denoiser.num_layers, max(self.layers_read) + 1
        if not (0 <= self.blocks <= built and 0 <= self.encoder_layers <= read):
            raise RequestError(
                f"{self.model} has {built} blocks and {read} encoder layers, "
                f"not {self.blocks} and {self.encoder_layers}"
            )

    @property
    def whole(self) -> Sizes:
        """The sizes that the row is about."""
        return SIZES[self.model]

    @property
    def layers_read(self) -> tuple[int, ...]:
        """Of the text encoder, zero-based."""
        return SIZES[self.model].denoiser.selected_layer_index

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) in tokens."""
        return self.height // PIXELS_PER_TOKEN, self.width // PIXELS_PER_TOKEN

    @property
    def name(self) -> str:
        """Of the row: what tells it from the others."""
        kind = "turbo" if self.guidance == 1.0 else "guided"
        parts = [self.model, f"{self.width}x{self.height}", f"{kind}-{self.steps}"]
        parts.append(f"batch-{self.batch}")
        parts += [f"{self.blocks}-blocks"] if self.blocks else []
        return "-".join(parts + ([f"{self.calls}-measured"] if self.calls < self.steps else []))

    @property
    def calls(self) -> int:
        """Steps that are measured."""
        return self.steps_measured or self.steps

    @property
    def title(self) -> str:
        """In a few words."""
        guidance = "without guidance" if self.guidance == 1.0 else f"guidance {self.guidance:g}"
        pictures = "a picture" if self.batch == 1 else f"{self.batch} pictures"
        part = f", {self.blocks} blocks measured" if self.blocks else ""
        part += f", {self.calls} steps measured" if self.calls < self.steps else ""
        return (
            f"{pictures} of {self.width} x {self.height}, {self.steps} steps, {guidance}, "
            f"{self.model}'s size{part}"
        )

    def built(self) -> Sizes:
        """The sizes of what is built: a part of the networks where that was asked for."""
        sizes = SIZES[self.model]
        denoiser = sizes.denoiser
        encoder = replace(sizes.encoder, vocab_size=_VOCABULARY)  # its rows are only looked up
        if self.blocks:
            denoiser = replace(denoiser, num_layers=self.blocks)
        if self.encoder_layers:
            encoder = replace(
                encoder,
                num_hidden_layers=self.encoder_layers,
                layer_types=encoder.layer_types[: self.encoder_layers],
            )
        return Sizes(encoder=encoder, denoiser=denoiser, autoencoder=sizes.autoencoder)


def usual_settings(device: torch.device) -> list[Setting]:
    """The rows of the published table: all of them on a GPU, what can be done on a CPU.

    A CPU measures mini whole. At the full width it builds two of 48 blocks and one of 24 encoder
    layers, draws one step of one picture, and labels what it extrapolates.
    """
    full = Setting(
        model="lens", height=1024, width=1024, text_tokens=128, dtype="bfloat16", rounds=5
    )
    sizes = [replace(full, height=side, width=side) for side in (1024, 1440)]
    kinds = [
        replace(each, steps=steps, guidance=guidance)
        for each in sizes
        for steps, guidance in ((4, 1.0), (20, 5.0))
    ]
    if device.type != "cpu":
        return [replace(each, batch=batch) for each in kinds for batch in (1, 8)]
    mini = Setting(model="mini", rounds=5)
    return [
        mini,
        replace(mini, batch=8, rounds=3),
        replace(mini, steps=20, guidance=5.0, rounds=3),
        replace(mini, height=512, width=512, rounds=3),
        *(replace(each, blocks=2, encoder_layers=1, steps_measured=1, rounds=1) for each in kinds),
    ]
