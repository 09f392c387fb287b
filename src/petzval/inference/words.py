"""From the features of prompts to a branch of the denoiser, whatever lengths they have."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from petzval.conditioning.encoder import PromptFeatures
from petzval.flow.solver import Denoise
from petzval.inference import numerics
from petzval.inference.denoise import branch, packed_branch
from petzval.inference.graphs import GraphedDenoiser
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.shapes import TextTokens


@torch.no_grad()
def embed(denoiser: MMDiT, features: Sequence[PromptFeatures], dtype: torch.dtype) -> TextTokens:
    """The denoiser's text stream for prompts of one length.

    Raises:
        NumericsError: a feature is not finite.
    """
    device = denoiser.txt_in.weight.device
    layers = [
        torch.stack(parts).to(device)
        for parts in zip(*(each.layers for each in features), strict=True)
    ]
    for layer in layers:
        numerics.check_finite(layer, "text features", dtype)
    return denoiser.embed_text(layers)


def worded_branch(
    denoiser: MMDiT,
    features: Sequence[PromptFeatures | None],
    grid: tuple[int, int],
    modulations: Sequence[StepModulation],
    dtype: torch.dtype,
    graphs: GraphedDenoiser | None = None,
) -> Denoise:
    """One branch of pictures with a prompt each; None is a picture without text.

    Prompts of one length share a batch; of several, a row.

    Raises:
        NumericsError: a feature is not finite.
    """
    written = [each for each in features if each is not None]
    if not written:
        return branch(denoiser, None, grid, modulations, graphs)
    if len(written) == len(features) and len({each.num_tokens for each in written}) == 1:
        return branch(denoiser, embed(denoiser, written, dtype), grid, modulations, graphs)
    texts = [None if each is None else embed(denoiser, [each], dtype)[0] for each in features]
    return packed_branch(denoiser, texts, grid, modulations)
