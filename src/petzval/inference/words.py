"""The words of a plan: encoded once, and made a branch of the denoiser, whatever their lengths."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from petzval.conditioning.encoder import PromptEncoder, PromptFeatures
from petzval.flow.solver import Denoise
from petzval.inference import numerics
from petzval.inference.denoise import Branch, branch, brought, guided, packed_branch
from petzval.inference.graphs import GraphedDenoiser
from petzval.inference.numerics import OfCheckpoint
from petzval.inference.placement import DENOISER, ENCODER
from petzval.inference.plan import GenerationPlan, PlannedImage
from petzval.inference.residency import Residency
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.shapes import TextTokens


class Words:
    """Features of a plan's prompts; one thread at a time, and none while the networks move.

    Args:
        encoder: prompts → features.
        weights: gives what names the files of a damaged encoder.
    """

    def __init__(
        self, encoder: PromptEncoder, weights: Callable[[], OfCheckpoint | None] = lambda: None
    ) -> None:
        self._encoder = encoder
        self._weights = weights
        self._most = encoder.max_batch
        self._lock = threading.Lock()

    def encode(self, plan: GenerationPlan, prompts: Sequence[str]) -> list[PromptFeatures]:
        """Features of prompts, from the cache where they are there."""
        with self._lock:
            return self._encoder.encode(
                prompts,
                date=plan.template_date,
                truncate=plan.truncate,
                markers=plan.markers,
                max_tokens=plan.max_tokens,
            )

    def limit(self, texts: int | None = None, feature_bytes: int | None = None) -> None:
        """From here on, encode at most so many texts together, and keep so many bytes of features.

        None is as many as at first, and nothing is more than that.
        """
        self._encoder.max_batch = self._most if texts is None else min(texts, self._most)
        self._encoder.cache.limit(feature_bytes)

    def batches(self, plan: GenerationPlan, size: int) -> Iterable[tuple[PlannedImage, ...]]:
        """Pictures that share a batch; as few batches as can be hold texts of several lengths."""
        if size == 1:
            return [(image,) for image in plan.images]
        encoded = zip(plan.texts, self.encode(plan, plan.texts), strict=True)
        return plan.batches(size, {prompt: each.num_tokens for prompt, each in encoded})

    def encode_first(
        self, plan: GenerationPlan, images: Sequence[PlannedImage], residency: Residency
    ) -> None:
        """Encode what some pictures need before the denoiser comes, where they take turns.

        An encoder that is asked later would push the denoiser out, also one that itself stays.

        Args:
            plan: of the pictures; an encoder that leaves is asked for all of its words.
            images: a batch of them.
            residency: has the encoder.
        """
        if residency.stays:
            return
        if not residency.keeps(ENCODER):
            self.encode(plan, plan.texts)
            return
        self.encode(plan, list(dict.fromkeys(image.prompt for image in images)))
        if plan.guidance != 1.0:
            negative = dict.fromkeys(image.negative_prompt for image in images)
            self.encode(plan, [each for each in negative if each])

    def velocity(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        residency: Residency,
        modulations: Sequence[StepModulation],
        graphs: GraphedDenoiser | None = None,
    ) -> Denoise:
        """(tokens, sigma, call) → velocity, with words and guidance inside.

        Args:
            plan: of the pictures.
            images: a batch of them.
            residency: has the denoiser.
            modulations: one for each call.
            graphs: calls the same denoiser in its place.
        """
        bring = partial(residency.bring, DENOISER)

        def branch(prompts: Sequence[str | None]) -> Branch:
            denoiser = residency.denoiser
            return self.branch(plan, prompts, denoiser, modulations, residency.dtype, graphs)

        conditional = branch([image.prompt for image in images])
        if plan.guidance == 1.0:
            return brought(conditional, bring)
        unconditional = branch([image.negative_prompt for image in images])
        exact, visit = not plan.parity.state_in_network_dtype, residency.visit
        both = guided(conditional, unconditional, plan.guidance, exact=exact, visit=visit)
        return brought(both, bring)

    def branch(
        self,
        plan: GenerationPlan,
        prompts: Sequence[str | None],
        denoiser: MMDiT,
        modulations: Sequence[StepModulation],
        dtype: torch.dtype,
        graphs: GraphedDenoiser | None = None,
    ) -> Branch:
        """A branch of pictures with these prompts; one that is blank is no text."""
        encoded = iter(self.encode(plan, [prompt for prompt in prompts if prompt]))
        words = [next(encoded) if prompt else None for prompt in prompts]
        grid = plan.resolution.grid
        weights = self._weights()
        return worded_branch(denoiser, words, grid, modulations, dtype, graphs, weights)

    @contextmanager
    def moving(self) -> Generator[None]:
        """Nothing is encoded until the end of the block."""
        with self._lock:
            yield


@torch.no_grad()
def embed(
    denoiser: MMDiT,
    features: Sequence[PromptFeatures],
    dtype: torch.dtype,
    weights: OfCheckpoint | None = None,
) -> TextTokens:
    """The denoiser's text stream for prompts of one length.

    Args:
        denoiser: embeds.
        features: of the prompts.
        dtype: of the arithmetic.
        weights: names the encoder's files where they may be damaged.

    Raises:
        NumericsError: a feature is not finite.
    """
    device = denoiser.txt_in.weight.device
    layers = [
        torch.stack(parts).to(device)
        for parts in zip(*(each.layers for each in features), strict=True)
    ]
    for layer in layers:
        numerics.check_features(layer, dtype, weights)
    return denoiser.embed_text(layers)


def worded_branch(
    denoiser: MMDiT,
    features: Sequence[PromptFeatures | None],
    grid: tuple[int, int],
    modulations: Sequence[StepModulation],
    dtype: torch.dtype,
    graphs: GraphedDenoiser | None = None,
    weights: OfCheckpoint | None = None,
) -> Branch:
    """One branch of pictures with a prompt each; None is a picture without text.

    Prompts of one length share a batch; of several, a row. `weights` as in `embed`.

    Raises:
        NumericsError: a feature is not finite.
    """
    written = [each for each in features if each is not None]
    if not written:
        return branch(denoiser, None, grid, modulations, graphs)
    if len(written) == len(features) and len({each.num_tokens for each in written}) == 1:
        text = embed(denoiser, written, dtype, weights)
        return branch(denoiser, text, grid, modulations, graphs)
    texts = [
        None if each is None else embed(denoiser, [each], dtype, weights)[0] for each in features
    ]
    return packed_branch(denoiser, texts, grid, modulations)
