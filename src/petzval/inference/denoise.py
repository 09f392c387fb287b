"""The denoiser with its words and its guidance inside, as the sampler wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from petzval.flow.guidance import guide
from petzval.flow.solver import Denoise
from petzval.inference.graphs import GraphedDenoiser
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.models.packed import pack_layout
from petzval.models.rope import mmdit_rope
from petzval.shapes import TextTokens


def branch(
    denoiser: MMDiT,
    text: TextTokens | None,
    grid: tuple[int, int],
    modulations: Sequence[StepModulation],
    graphs: GraphedDenoiser | None = None,
) -> Denoise:
    """One branch; without text it has no text stream at all.

    Args:
        text: [B, T, width], none of it padded, so that no mask is needed; or None.
        grid: (height, width) in tokens.
        modulations: one for each call of the network, in order.
        graphs: calls the same denoiser in its place.
    """
    num_text_tokens = 0 if text is None else text.shape[1]
    axes, device = denoiser.config.axes_dims_rope, denoiser.img_in.weight.device
    rope = mmdit_rope(grid, num_text_tokens, axes, device=device)

    @torch.no_grad()
    def velocity(tokens: Tensor, sigma: float, call: int) -> Tensor:
        del sigma  # the modulation knows it
        return (graphs or denoiser)(tokens, text, modulations[call], rope)

    return velocity


def packed_branch(
    denoiser: MMDiT,
    texts: Sequence[Tensor | None],
    grid: tuple[int, int],
    modulations: Sequence[StepModulation],
) -> Denoise:
    """One branch of pictures whose texts differ in length: all in one row, nothing padded.

    Args:
        texts: [tokens, width] of each picture; None is a picture without text.
        grid, modulations: as in `branch`.
    """
    lengths = [0 if text is None else text.shape[0] for text in texts]
    axes, device = denoiser.config.axes_dims_rope, denoiser.img_in.weight.device
    layout = pack_layout([grid] * len(texts), lengths, axes, device=device)
    written = [text for text in texts if text is not None]
    row = torch.cat(written)[None] if written else None

    @torch.no_grad()
    def velocity(tokens: Tensor, sigma: float, call: int) -> Tensor:
        del sigma
        modulation = _for_each(modulations[call], len(texts))
        joined = layout.join(list(tokens))
        out = denoiser(joined, row, modulation, layout.rope, packing=layout)
        return torch.stack(layout.split(out))

    return velocity


def _for_each(modulation: StepModulation, samples: int) -> StepModulation:
    """One step's modulation as rows, one for each sample of a row; nothing is copied."""
    return StepModulation(
        image=tuple(m.expand(samples, -1) for m in modulation.image),
        text=tuple(m.expand(samples, -1) for m in modulation.text),
        final=modulation.final.expand(samples, -1),
    )


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
