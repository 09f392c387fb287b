"""The words of a plan as the denoiser's text stream: encoded once, in the groups that may share."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import torch

from petzval.conditioning.encoder import PromptEncoder, PromptFeatures
from petzval.inference import numerics
from petzval.inference.plan import GenerationPlan, PlannedImage
from petzval.models.mmdit import MMDiT
from petzval.shapes import TextTokens


class TextStream:
    """Prompts → features → text tokens.

    Args:
        encoder: prompts → features.
        dtype, device: of the denoiser.
    """

    def __init__(self, encoder: PromptEncoder, dtype: torch.dtype, device: torch.device) -> None:
        self._encoder = encoder
        self._dtype = dtype
        self._device = device
        self._lock = threading.Lock()

    def encode(self, plan: GenerationPlan, prompts: Sequence[str]) -> list[PromptFeatures]:
        """Features of prompts, from the cache where they are there; one thread at a time."""
        with self._lock:
            return self._encoder.encode(
                prompts,
                date=plan.template_date,
                truncate=plan.truncate,
                markers=plan.markers,
                max_tokens=plan.max_tokens,
            )

    @contextmanager
    def moving(self) -> Generator[None]:
        """Nothing is encoded until the end of the block."""
        with self._lock:
            yield

    @torch.no_grad()
    def tokens(self, plan: GenerationPlan, prompts: Sequence[str], denoiser: MMDiT) -> TextTokens:
        """The denoiser's text stream [B, T, width] for prompts of one length.

        Raises:
            NumericsError: a feature is not finite.
        """
        encoded = self.encode(plan, prompts)
        layers = [
            torch.stack(parts).to(self._device)
            for parts in zip(*(each.layers for each in encoded), strict=True)
        ]
        for layer in layers:
            numerics.check_finite(layer, "text features", self._dtype)
        return denoiser.embed_text(layers)

    def batches(self, plan: GenerationPlan, size: int) -> Iterable[tuple[PlannedImage, ...]]:
        """Pictures that may share a batch: their texts are of one length, so nothing is padded."""
        if size == 1:
            return [(image,) for image in plan.images]
        encoded = zip(plan.texts, self.encode(plan, plan.texts), strict=True)
        return plan.batches(size, {prompt: each.num_tokens for prompt, each in encoded})
