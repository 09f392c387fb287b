"""A request and a checkpoint, decided: the values from which the pipeline works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8

import petzval
from petzval.conditioning.template import resolve_date
from petzval.errors import RequestError
from petzval.flow.schedule import empirical_mu, warn_off_family
from petzval.inference.device import device_name
from petzval.inference.mark import check_room, marked
from petzval.inference.parity import PARITIES, Markers, Parity, Truncate
from petzval.inference.placement import Storage
from petzval.inference.recipe import Recipe, UsedLora
from petzval.inference.request import GeneratedImage, GenerationRequest
from petzval.inference.variants import Defaults
from petzval.resolution import Resolution


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedImage:
    """One picture of a plan.

    Attributes:
        index: place in the request: prompt by prompt, each with its `num_images`.
        negative_prompt: blank where the unconditional branch has no text.
        noise_row: row of the noise that `seed` draws; 0 unless a batch shares one generator.
    """

    index: int
    prompt: str
    negative_prompt: str
    seed: int
    noise_row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationPlan:
    """What was decided for a request and a checkpoint; no field is open any more."""

    images: tuple[PlannedImage, ...]
    resolution: Resolution
    allow_any_size: bool
    steps: int
    guidance: float
    mu: float
    solver: str
    parity: Parity
    template_date: str
    truncate: Truncate
    markers: Markers
    max_tokens: int
    mark: str = ""

    @property
    def texts(self) -> list[str]:
        """All that has to be encoded: prompts, and negative prompts with guidance, each once."""
        prompts = [image.prompt for image in self.images]
        if self.guidance == 1.0:
            return list(dict.fromkeys(prompts))
        negatives = [image.negative_prompt for image in self.images if image.negative_prompt]
        return list(dict.fromkeys(prompts + negatives))

    def batches(self, size: int, lengths: Mapping[str, int]) -> Iterator[tuple[PlannedImage, ...]]:
        """Pictures in groups of at most `size`, those whose texts are of one length side by side.

        Args:
            lengths: tokens of all `texts`.
        """
        groups: dict[tuple[int, int], list[PlannedImage]] = {}
        for image in self.images:
            negative = lengths.get(image.negative_prompt, 0)
            groups.setdefault((lengths[image.prompt], negative), []).append(image)
        ordered = [image for group in groups.values() for image in group]
        for start in range(0, len(ordered), size):
            yield tuple(ordered[start : start + size])

    def pictures(
        self,
        images: Sequence[PlannedImage],
        pixels: UInt8[np.ndarray, "batch height width 3"],
        made_by: MadeBy,
        seconds: Mapping[str, float],
    ) -> Iterator[GeneratedImage]:
        """Some of the pictures, made: pixels and recipes, the time shared among them."""
        share = {stage: time / len(images) for stage, time in seconds.items()}
        for row, image in enumerate(images):
            yield GeneratedImage(
                pixels=marked(pixels[row], self.mark),
                recipe=self.recipe(image, made_by),
                seconds=share,
                index=image.index,
            )

    def recipe(self, image: PlannedImage, made_by: MadeBy) -> Recipe:
        """What makes one of the pictures again."""
        return Recipe(
            petzval=made_by.petzval,
            model=made_by.model,
            checkpoint=made_by.checkpoint,
            prompt=image.prompt,
            negative_prompt=image.negative_prompt,
            seed=image.seed,
            steps=self.steps,
            guidance=self.guidance,
            height=self.resolution.height,
            width=self.resolution.width,
            mu=self.mu,
            solver=self.solver,
            parity=self.parity.name,
            template_date=self.template_date,
            truncate=self.truncate,
            markers=self.markers,
            max_tokens=self.max_tokens,
            noise_row=image.noise_row,
            allow_any_size=self.allow_any_size,
            loras=made_by.loras,
            dtype=made_by.dtype,
            device=made_by.device,
            torch=made_by.torch,
            threads=made_by.threads,
            weights=made_by.weights,
            mark=self.mark,
        )


Asked: TypeAlias = GenerationRequest | GenerationPlan | str | Sequence[str]
"""What can be drawn: a request, a plan made from one, a prompt or several."""


def decide(asked: Asked, defaults: Defaults, **options: Any) -> GenerationPlan:
    """The plan of whatever was asked for, with further fields of the request as options.

    Raises:
        RequestError: the request cannot be served; or options on top of a finished plan.
    """
    if isinstance(asked, GenerationPlan):
        if options:
            raise RequestError(
                f"a plan is decided, and cannot take {', '.join(options)} any more",
                "give the options with the request that the plan is made from",
            )
        return asked
    if isinstance(asked, GenerationRequest):
        return make_plan(replace(asked, **options), defaults)
    return make_plan(GenerationRequest(prompt=asked, **options), defaults)


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeBy:
    """The part of a recipe that belongs to the pipeline; fields as in `Recipe`."""

    petzval: str
    model: str
    checkpoint: str
    dtype: str
    device: str
    torch: str
    threads: int | None = None
    loras: tuple[UsedLora, ...] = ()
    weights: Storage = "exact"

    @classmethod
    def here(
        cls,
        model: str,
        checkpoint: str,
        dtype: torch.dtype,
        device: torch.device,
        loras: tuple[UsedLora, ...],
    ) -> MadeBy:
        """By this program, with this torch."""
        return cls(
            petzval=petzval.__version__,
            model=model,
            checkpoint=checkpoint,
            dtype=str(dtype).removeprefix("torch."),
            device=device_name(device),
            torch=torch.__version__,
            loras=loras,
        )


def make_plan(request: GenerationRequest, defaults: Defaults) -> GenerationPlan:
    """Decide everything that the request left open.

    Warns:
        ScheduleWarning: the size lies where the empirical schedule was not fitted.

    Raises:
        RequestError: the size is not legal, too large for the prompt's positions, or too small for
            the mark.
    """
    parity = PARITIES[request.parity]
    resolution = request.resolution(defaults)
    check_room(request.mark, resolution.height, resolution.width)
    steps = defaults.steps if request.steps is None else request.steps
    if request.mu is None:
        warn_off_family(resolution.num_tokens)
        mu = empirical_mu(resolution.num_tokens, steps)
    else:
        mu = float(request.mu)
    return GenerationPlan(
        images=_planned_images(request, parity),
        resolution=resolution,
        allow_any_size=request.allow_any_size,
        steps=steps,
        guidance=float(defaults.guidance if request.guidance is None else request.guidance),
        mu=mu,
        solver=request.solver,
        parity=parity,
        template_date=resolve_date(request.template_date or parity.template_date),
        truncate=request.truncate or parity.truncate,
        markers=request.markers or parity.markers,
        max_tokens=request.max_tokens,
        mark=request.mark,
    )


def _planned_images(request: GenerationRequest, parity: Parity) -> tuple[PlannedImage, ...]:
    prompts, negatives, seeds = request.prompts, request.negative_prompts, request.seeds
    if len(negatives) == 1:
        negatives = negatives * len(prompts)
    # One number and microsoft mode: one generator draws for the whole request. A list of numbers
    # is a list of generators there, too.
    shared_draw = parity.batch_noise and isinstance(request.seed, int)
    images: list[PlannedImage] = []
    for prompt, negative in zip(prompts, negatives, strict=True):
        for seed in seeds:
            index = len(images)
            image = PlannedImage(
                index=index,
                prompt=prompt,
                negative_prompt=negative if negative.strip() else "",
                seed=seeds[0] if shared_draw else seed,
                noise_row=request.noise_row + (index if shared_draw else 0),
            )
            images.append(image)
    return tuple(images)
