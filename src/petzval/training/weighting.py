"""What a rank's batch weighs in the gradient when batches are unequal.

With 24 small pictures on one rank and 6 large ones on another, "the mean" has three meanings:

    sample   every picture counts alike: sum over samples / number of samples of all ranks
    token    every token counts alike: a picture weighs as much as it has tokens
    rank     every rank counts alike: the mean of the ranks' means. Plain data-parallel averaging
             does this silently, so it is what the Lens paper's run must have done; the default.

FSDP2 averages gradients over ranks. A rank therefore minimises its sum times `size / total`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from petzval.training.objective import Loss
from petzval.training.ranks import Ranks

Weighting = Literal["sample", "rank", "token"]


def weighted(loss: Loss, weighting: Weighting, ranks: Ranks) -> tuple[Tensor, float]:
    """The scalar whose gradients, averaged over the ranks, are those of the global loss.

    Its own mean over the ranks is the global loss. Where the objective gives `Loss.items`, samples
    are weighed one by one; otherwise the batch's mean counts for all its samples or tokens, which
    is the same where they are of one size. All ranks must call it.

    Returns:
        The scalar, and what it weighs against the other batches of a step: the number of samples
        or tokens of all ranks' batches; 1 where ranks count alike.
    """
    if weighting == "rank":
        return loss.value, 1.0
    share = loss.num_items if weighting == "sample" else loss.num_tokens
    total = max(1.0, ranks.sum([float(share)])[0])
    scale = ranks.size / total
    if loss.items is None:
        return loss.value * (share * scale), total
    if weighting == "sample":
        return loss.items.sum() * scale, total
    assert loss.item_tokens is not None, "token weighting of items needs their token counts"
    return (loss.items * loss.item_tokens.to(loss.items.dtype)).sum() * scale, total
