"""Prompts as tensors, and a batch whose texts have different lengths.

Outside, texts are one padded tensor with a mask, as diffusers hands them about. Inside nothing is
padded: rows with texts of the same length run together, so that no mask is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from petzval.conditioning.encoder import PromptFeatures
from petzval.diffusers.networks import LensTransformer2DModel
from petzval.errors import RequestError
from petzval.flow.guidance import guide
from petzval.models.mmdit import StepModulation
from petzval.models.rope import RopeTables, mmdit_rope
from petzval.shapes import LatentTokens, TextTokens

PromptEmbeds = Float[Tensor, "batch text_tokens layers encoder_width"]
PromptMask = Bool[Tensor, "batch text_tokens"]

Encode = Callable[[str | Sequence[str]], tuple[Tensor, Tensor]]
"""Prompts → embeddings and mask."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Texts:
    """One text for each row of a batch.

    Attributes:
        embeds: features of the selected layers, right-padded.
        mask: True where they are real.

    Raises:
        RequestError: they do not fit each other.
    """

    embeds: PromptEmbeds
    mask: PromptMask

    def __post_init__(self) -> None:
        if self.mask.shape != self.embeds.shape[:2]:
            raise RequestError(
                f"a mask of shape {list(self.mask.shape)} does not fit embeddings of shape "
                f"{list(self.embeds.shape)}",
                "take both from encode_prompt",
            )

    @classmethod
    def of(cls, features: Sequence[PromptFeatures]) -> Texts:
        """Features of several prompts, zeros behind the shorter ones."""
        longest = max(each.num_tokens for each in features)
        num_layers, width = len(features[0].layers), features[0].layers[0].shape[1]
        embeds = features[0].layers[0].new_zeros(len(features), longest, num_layers, width)
        mask = torch.zeros(len(features), longest, dtype=torch.bool, device=embeds.device)
        for row, each in enumerate(features):
            embeds[row, : each.num_tokens] = torch.stack(each.layers, dim=1)
            mask[row, : each.num_tokens] = True
        return cls(embeds=embeds, mask=mask)

    @classmethod
    def given(cls, name: str, embeds: Tensor, mask: Tensor | None) -> Texts:
        """Embeddings that a caller brings; without a mask all of them are real.

        Raises:
            RequestError: naming them: their shape is none that `encode_prompt` gives.
        """
        if embeds.ndim != 4:
            raise RequestError(
                f"{name} of shape {list(embeds.shape)}, expected [prompts, text tokens, layers, "
                "width]",
                "take them from encode_prompt",
            )
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        if mask.shape != embeds.shape[:2]:
            raise RequestError(f"{name}_mask of shape {list(mask.shape)} does not fit {name}")
        return cls(embeds=embeds, mask=mask.bool())

    def none(self) -> Texts:
        """As many rows, all without text."""
        return Texts(embeds=self.embeds[:, :0], mask=self.mask[:, :0])

    def repeated(self, times: int) -> Texts:
        """Each row several times, one behind the other."""
        return Texts(
            embeds=self.embeds.repeat_interleave(times, dim=0),
            mask=self.mask.repeat_interleave(times, dim=0),
        )

    def lengths(self) -> list[int]:
        """Text tokens of each row.

        Raises:
            RequestError: a row has padding before or between its tokens.
        """
        counts = self.mask.sum(dim=1)
        places = torch.arange(self.mask.shape[1], device=self.mask.device)
        if not torch.equal(self.mask, places[None] < counts[:, None]):
            raise RequestError("a prompt's mask has holes", "padding stands behind a text's tokens")
        return [int(count) for count in counts]


def read_prompts(
    prompt: str | Sequence[str] | None, embeds: Tensor | None, mask: Tensor | None, encode: Encode
) -> Texts:
    """The conditional branch's texts, one row a prompt: prompts to encode, or embeddings.

    Raises:
        RequestError: both are given or none, or they are of another shape.
    """
    if (prompt is None) == (embeds is None):
        raise RequestError("give either prompt or prompt_embeds")
    if prompt is None:
        assert embeds is not None
        return Texts.given("prompt_embeds", embeds, mask)
    encoded, real = encode(prompt)
    return Texts(embeds=encoded, mask=real)


def read_negatives(
    prompt: str | Sequence[str] | None,
    embeds: Tensor | None,
    mask: Tensor | None,
    positive: Texts,
    encode: Encode,
) -> Texts:
    """The unconditional branch's texts, as many rows; a blank prompt is no text at all.

    Raises:
        RequestError: they are of another shape or number, or no texts.
    """
    num_prompts = len(positive.mask)
    if embeds is not None:
        texts = Texts.given("negative_prompt_embeds", embeds, mask)
    else:
        asked: Any = "" if prompt is None else prompt
        prompts: list[Any] = [asked] if isinstance(asked, str) else []
        if isinstance(asked, list | tuple):
            prompts = list(cast("Sequence[Any]", asked))
        if not prompts or not all(isinstance(each, str) for each in prompts):
            raise RequestError(
                f"a negative prompt is a text, or a list of texts; got {asked!r:.80}"
            )
        if not any(each.strip() for each in prompts):
            return positive.none()
        encoded, real = encode(prompts)
        blank = torch.tensor([not each.strip() for each in prompts], device=real.device)
        texts = Texts(embeds=encoded, mask=real & ~blank[:, None])
    if len(texts.mask) == 1:
        return texts.repeated(num_prompts)
    if len(texts.mask) != num_prompts:
        raise RequestError(
            f"{len(texts.mask)} negative prompts for {num_prompts} prompts",
            "give one for all, or one for each",
        )
    return texts


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Rows:
    """Rows of the batch whose texts have the same length."""

    index: list[int]
    text: TextTokens | None
    rope: RopeTables


class GuidedDenoiser:
    """Velocity of a batch under its texts.

    Args:
        transformer: the denoiser.
        grid: (height, width) of the pictures in tokens.
        modulations: one for each call of the network, in order.
        device: where the work is done.
    """

    def __init__(
        self,
        transformer: LensTransformer2DModel,
        grid: tuple[int, int],
        modulations: Sequence[StepModulation],
        device: torch.device,
    ) -> None:
        self._transformer = transformer
        self._grid = grid
        self._modulations = modulations
        self._device = device
        self._conditional: list[_Rows] = []
        self._unconditional: list[_Rows] = []

    def read(self, conditional: Texts, unconditional: Texts) -> None:
        """Take the texts of both branches, a row for each picture."""
        self._conditional = self._grouped(conditional)
        self._unconditional = self._grouped(unconditional)

    def velocity(self, tokens: LatentTokens, call: int, scale: float) -> LatentTokens:
        """The velocity to follow, float32; at scale 1 the unconditional branch does not run."""
        wanted = self._branch(tokens, call, self._conditional)
        if scale == 1.0:
            return wanted
        return guide(wanted, self._branch(tokens, call, self._unconditional), scale)

    def _grouped(self, texts: Texts) -> list[_Rows]:
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(texts.lengths()):
            groups.setdefault(length, []).append(row)
        return [self._rows(texts.embeds, index, length) for length, index in groups.items()]

    def _rows(self, embeds: PromptEmbeds, index: list[int], length: int) -> _Rows:
        axes = self._transformer.network.config.axes_dims_rope
        rope = mmdit_rope(self._grid, length, axes, device=self._device)
        text = None
        if length:
            own = embeds[index, :length].to(self._device)
            text = self._transformer.embed_text(own.unbind(dim=2))
        return _Rows(index=index, text=text, rope=rope)

    def _branch(self, tokens: LatentTokens, call: int, branch: Sequence[_Rows]) -> LatentTokens:
        velocity = torch.empty_like(tokens, dtype=torch.float32)
        for rows in branch:
            own = tokens[rows.index]
            velocity[rows.index] = self._transformer(
                own, rows.text, self._modulations[call], rows.rope
            ).float()
        return velocity
