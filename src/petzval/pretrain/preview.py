"""Pictures that a run shows of itself: reconstructions and samples of fixed prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.flow.guidance import guide
from petzval.flow.noise import initial_noise
from petzval.flow.sampler import sample
from petzval.flow.schedule import empirical_mu, sigmas
from petzval.models.latents import denormalise, unpatchify
from petzval.models.mmdit import MMDiT
from petzval.models.rope import mmdit_rope
from petzval.models.vae import Autoencoder
from petzval.pretrain.windows import pad
from petzval.training.pictures import save_grid
from petzval.training.state import RunState

PREVIEW_PROMPTS: tuple[str, ...] = (
    "a red apple on a white background",
    "a cat",
    "a blue car on a yellow background",
    "three strawberries",
    "a 3D render of a rocket on a dark blue background",
    "a green tree on a light blue background",
    "a yellow star in the top left corner",
    "a dog to the left of a ball",
    "a pizza, flat icon",
    "a purple heart on a pink background",
    "a penguin",
    "a house, colour sticker style",
)


@runtime_checkable
class Drawing(Protocol):
    """What pictures are drawn with: the objective that trains a denoiser."""

    @property
    def model(self) -> MMDiT:
        """The denoiser."""
        ...

    @property
    def tokenizer(self) -> PromptTokenizer:
        """Of the text encoder."""
        ...

    def features(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Features [B, T, width] of each selected layer, of ids and mask [B, T]."""
        ...


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] through the latents and back, not clamped."""
    return autoencoder.decode(autoencoder.encode(images))


@torch.no_grad()
def sample_pictures(
    objective: Drawing,
    autoencoder: Autoencoder,
    prompts: Sequence[str],
    grid: tuple[int, int],
    *,
    num_steps: int = 12,
    guidance: float = 3.0,
) -> list[Tensor]:
    """One picture [3, 16 h, 16 w] for each prompt, seeds 0, 1, 2 …, by Euler steps."""
    model, tokenizer = objective.model, objective.tokenizer
    device = model.proj_out.weight.device
    text, mask = _embed(objective, tokenizer, prompts)
    levels = sigmas(num_steps, empirical_mu(grid[0] * grid[1], num_steps))
    modulations = model.modulations(levels[:-1].to(device))
    axes = model.config.axes_dims_rope
    rope = mmdit_rope(grid, text.shape[1], axes, device=device)
    blank = mmdit_rope(grid, 0, axes, device=device)

    def denoise(tokens: Tensor, sigma: float, call: int) -> Tensor:
        conditional = model(tokens, text, modulations[call], rope, mask)
        return guide(conditional, model(tokens, None, modulations[call], blank), guidance)

    noise = initial_noise(range(len(prompts)), grid, model.config.in_channels).to(device)
    tokens = noise
    for step in sample(denoise, noise, levels):
        tokens = step.tokens
    return list(decode_tokens(autoencoder, tokens, grid))


def draw_grid(
    file: Path,
    state: RunState,
    objective: Drawing,
    autoencoder: Autoencoder,
    prompts: Sequence[str],
    grid: tuple[int, int],
    *,
    num_steps: int,
    guidance: float,
    num_columns: int = 6,
) -> None:
    """Pictures of some prompts, drawn with the averages. All ranks call it, the first one writes.

    Raises:
        ValueError: the run keeps no averages.
    """
    if state.ema is None:
        raise ValueError("pictures are drawn with averages of the weights, and there are none")
    with state.ema.applied_to(state.model):
        pictures = state.evaluate(
            lambda: sample_pictures(
                objective, autoencoder, prompts, grid, num_steps=num_steps, guidance=guidance
            )
        )
    if state.ranks.is_first:
        save_grid(file, [picture.cpu() for picture in pictures], num_columns)


def decode_tokens(autoencoder: Autoencoder, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Normalised tokens [B, S, C] → pictures [B, 3, 16 h, 16 w], not clamped."""
    bn = autoencoder.bn
    latents = denormalise(tokens, bn.running_mean, bn.running_var, bn.eps)
    return autoencoder.decode(unpatchify(latents, grid))


def _embed(
    objective: Drawing, tokenizer: PromptTokenizer, prompts: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    rows = [tokenizer.encode(prompt).text_ids for prompt in prompts]
    ids, mask = pad(rows, tokenizer.special_id("<|endoftext|>"))
    model: MMDiT = objective.model
    device = model.proj_out.weight.device
    features = [feature.float().to(device) for feature in objective.features(ids, mask)]
    return model.embed_text(features), None if bool(mask.all()) else mask.to(device)
