"""The denoiser with its words and its guidance inside, as the sampler wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from petzval.flow.guidance import guide
from petzval.flow.solver import Denoise
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.models.rope import mmdit_rope
from petzval.shapes import TextTokens


def branch(
    denoiser: MMDiT,
    text: TextTokens | None,
    grid: tuple[int, int],
    modulations: Sequence[StepModulation],
) -> Denoise:
    """One branch; without text it has no text stream at all.

    Args:
        text: [B, T, width], none of it padded, so that no mask is needed; or None.
        grid: (height, width) in tokens.
        modulations: one for each call of the network, in order.
    """
    num_text_tokens = 0 if text is None else text.shape[1]
    axes, device = denoiser.config.axes_dims_rope, denoiser.img_in.weight.device
    rope = mmdit_rope(grid, num_text_tokens, axes, device=device)

    @torch.no_grad()
    def velocity(tokens: Tensor, sigma: float, call: int) -> Tensor:
        del sigma  # the modulation knows it
        return denoiser(tokens, text, modulations[call], rope)

    return velocity


def brought(velocity: Denoise, bring: Callable[[], object]) -> Denoise:
    """A branch whose network is brought before each call: a preview may have put it out."""

    def after(tokens: Tensor, sigma: float, call: int) -> Tensor:
        bring()
        return velocity(tokens, sigma, call)

    return after


def guided(
    conditional: Denoise, unconditional: Denoise, scale: float, *, exact: bool = True
) -> Denoise:
    """Both branches and classifier-free guidance between them.

    Args:
        exact: guidance in float32; else in the dtype of the network, as the original does.
    """

    def velocity(tokens: Tensor, sigma: float, call: int) -> Tensor:
        wanted = conditional(tokens, sigma, call)
        unwanted = unconditional(tokens, sigma, call)
        if exact:
            wanted, unwanted = wanted.float(), unwanted.float()
        return guide(wanted, unwanted, scale)

    return velocity
