"""The denoiser with its words and its guidance inside, as the sampler wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petzval.flow.guidance import guide
from petzval.flow.solver import Denoise
from petzval.inference.graphs import GraphedDenoiser
from petzval.models.mmdit import MMDiT, Pass, StepModulation, Visit
from petzval.models.packed import pack_layout
from petzval.models.rope import mmdit_rope
from petzval.shapes import TextTokens


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Branch:
    """One branch of the denoiser; called, it is a `Denoise`.

    Attributes:
        denoiser: that is called.
        asked: (tokens, number of the call) → what the network is given.
        given: what the network gives → velocity in the form of the tokens.
        graphs: calls the same denoiser in its place.
    """

    denoiser: MMDiT
    asked: Callable[[Tensor, int], Pass]
    given: Callable[[Tensor], Tensor]
    graphs: GraphedDenoiser | None = None

    @torch.no_grad()
    def __call__(self, tokens: Tensor, sigma: float, call: int) -> Tensor:
        del sigma  # the modulation knows it
        each = self.asked(tokens, call)
        inputs = (each.tokens, each.text, each.modulation, each.rope)
        if each.packing is not None:
            return self.given(self.denoiser(*inputs, packing=each.packing))
        return self.given((self.graphs or self.denoiser)(*inputs))


def branch(
    denoiser: MMDiT,
    text: TextTokens | None,
    grid: tuple[int, int],
    modulations: Sequence[StepModulation],
    graphs: GraphedDenoiser | None = None,
) -> Branch:
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

    def asked(tokens: Tensor, call: int) -> Pass:
        return Pass(tokens=tokens, text=text, modulation=modulations[call], rope=rope)

    return Branch(denoiser=denoiser, asked=asked, given=lambda out: out, graphs=graphs)


def packed_branch(
    denoiser: MMDiT,
    texts: Sequence[Tensor | None],
    grid: tuple[int, int],
    modulations: Sequence[StepModulation],
) -> Branch:
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

    def asked(tokens: Tensor, call: int) -> Pass:
        return Pass(
            tokens=layout.join(list(tokens)),
            text=row,
            modulation=_for_each(modulations[call], len(texts)),
            rope=layout.rope,
            packing=layout,
        )

    def given(out: Tensor) -> Tensor:
        return torch.stack(layout.split(out))

    return Branch(denoiser=denoiser, asked=asked, given=given)


def _for_each(modulation: StepModulation, samples: int) -> StepModulation:
    """One step's modulation as rows, one for each sample of a row; nothing is copied."""
    return StepModulation(
        image=tuple(m.expand(samples, -1) for m in modulation.image),
        text=tuple(m.expand(samples, -1) for m in modulation.text),
        final=modulation.final.expand(samples, -1),
    )


def brought(velocity: Denoise, bring: Callable[[], object]) -> Denoise:
    """A velocity whose network is brought before each call: a preview may have put it out."""

    def after(tokens: Tensor, sigma: float, call: int) -> Tensor:
        bring()
        return velocity(tokens, sigma, call)

    return after


def guided(
    conditional: Denoise,
    unconditional: Denoise,
    scale: float,
    *,
    exact: bool = True,
    visit: Visit | None = None,
) -> Denoise:
    """Both branches and classifier-free guidance between them.

    Args:
        conditional, unconditional: the branches; with `visit`, of one denoiser.
        scale: of the guidance.
        exact: guidance in float32; else in the dtype of the network, as the original does.
        visit: both branches go through each block while it is there; None runs one after the other.
    """

    def velocity(tokens: Tensor, sigma: float, call: int) -> Tensor:
        if visit is not None:
            wanted, unwanted = _side_by_side(conditional, unconditional, visit, tokens, call)
        else:
            wanted = conditional(tokens, sigma, call)
            unwanted = unconditional(tokens, sigma, call)
        if exact:
            wanted, unwanted = wanted.float(), unwanted.float()
        return guide(wanted, unwanted, scale)

    return velocity


@torch.no_grad()
def _side_by_side(
    first: Denoise, second: Denoise, visit: Visit, tokens: Tensor, call: int
) -> tuple[Tensor, Tensor]:
    assert isinstance(first, Branch)
    assert isinstance(second, Branch)
    passes = [first.asked(tokens, call), second.asked(tokens, call)]
    out = first.denoiser.side_by_side(passes, visit)
    return first.given(out[0]), second.given(out[1])
