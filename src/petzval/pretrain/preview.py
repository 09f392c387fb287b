"""Pictures that a run shows of itself: reconstructions and samples of fixed prompts."""

from __future__ import annotations

from collections.abc import Sequence

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
from petzval.pretrain.denoiser import DenoiserObjective
from petzval.pretrain.windows import pad

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


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] through the latents and back, not clamped."""
    return autoencoder.decode(autoencoder.encode(images))


@torch.no_grad()
def sample_pictures(
    objective: DenoiserObjective,
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


def decode_tokens(autoencoder: Autoencoder, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Normalised tokens [B, S, C] → pictures [B, 3, 16 h, 16 w], not clamped."""
    bn = autoencoder.bn
    latents = denormalise(tokens, bn.running_mean, bn.running_var, bn.eps)
    return autoencoder.decode(unpatchify(latents, grid))


def _embed(
    objective: DenoiserObjective, tokenizer: PromptTokenizer, prompts: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    rows = [tokenizer.encode(prompt).text_ids for prompt in prompts]
    ids, mask = pad(rows, tokenizer.special_id("<|endoftext|>"))
    model: MMDiT = objective.model
    device = model.proj_out.weight.device
    features = [feature.float().to(device) for feature in objective.features(ids, mask)]
    return model.embed_text(features), None if bool(mask.all()) else mask.to(device)
