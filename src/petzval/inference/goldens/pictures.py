"""Whole runs, from prompt to pixels: first by their parts, then through the pipeline itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from petzval.conditioning.encoder import PromptTruncatedWarning
from petzval.conditioning.tokenizer import DEFAULT_MAX_TOKENS
from petzval.config import from_mapping
from petzval.errors import ConfigError
from petzval.flow.guidance import guide
from petzval.flow.noise import initial_noise
from petzval.flow.sampler import sample
from petzval.flow.schedule import empirical_mu, sigmas
from petzval.inference.denoise import branch
from petzval.inference.goldens.case import (
    IMAGE_LIMIT,
    LATENT_LIMIT,
    PIXEL_LIMIT,
    SIGMA_LIMIT,
    CaseResult,
    absolute,
    differing,
    fault,
    judge,
)
from petzval.inference.goldens.folder import GoldenFile, GoldenFolder, Subject, nothing_unread
from petzval.inference.numerics import to_pixels
from petzval.inference.pipeline import Pipeline
from petzval.inference.request import GenerationRequest
from petzval.inference.variants import Defaults
from petzval.models.latents import denormalise, unpatchify
from petzval.shapes import TextTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureCase:
    """The arguments of one run, named as the original names them."""

    prompt: str | tuple[str, ...]
    height: int
    width: int
    steps: int
    guidance_scale: float
    negative_prompt: str | tuple[str, ...] | None = ""
    num_images_per_prompt: int = 1
    date: str = ""
    max_sequence_length: int = DEFAULT_MAX_TOKENS
    seed: int | tuple[int, ...] | None = None

    @property
    def prompts(self) -> list[str]:
        """One for each prompt, not for each picture."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def negatives(self) -> list[str]:
        """One for each prompt; empty where the unconditional branch has no text.

        The original leaves the text out only where all negatives are blank; a blank one among
        others goes through the template.
        """
        given = self.negative_prompt or ""
        listed = [given] if isinstance(given, str) else list(given)
        if not any(text.strip() for text in listed):
            return []
        return listed * len(self.prompts) if len(listed) == 1 else listed

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width in tokens."""
        return self.height // 16, self.width // 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run leaves behind, as the golden file names it."""

    sigmas: Tensor
    model_outputs: Tensor
    latents_per_step: Tensor
    decoded: Tensor


def check_pictures(golden: GoldenFolder, subject: Subject) -> Iterator[CaseResult]:
    """Every case of the folder, noise taken from the file."""
    stored = golden.tensors("pipeline.safetensors")
    cases: Mapping[str, Any] = golden.json("pipeline_cases.json")
    for name in stored.cases("init_latents"):
        if name not in cases:
            yield fault(f"pipeline/{name}", "pipeline_cases.json does not say its arguments")
            continue
        values = {"date": golden.date, **cases[name]}
        try:
            case = from_mapping(PictureCase, values, where="pipeline_cases.json")
        except ConfigError as error:
            yield fault(f"pipeline/{name}", error.message)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTruncatedWarning)
            yield from _check_parts(f"pipeline/{name}", name, stored, case, subject)
            yield from _check_product(f"pipeline/{name}", name, stored, case, subject)
    for name in cases:
        if f"{name}.init_latents" not in stored:
            yield fault(f"pipeline/{name}", "pipeline.safetensors has no such case")
    yield from nothing_unread("pipeline", stored)


def _check_parts(
    place: str, name: str, stored: GoldenFile, case: PictureCase, subject: Subject
) -> Iterator[CaseResult]:
    noise = stored[f"{name}.init_latents"]
    if case.seed is not None:
        drawn = _drawn(case, noise)
        yield judge(f"{place} noise", differing(drawn, noise), 0, "values that differ")
    run = run_parts(case, noise, subject)
    yield judge(f"{place} sigmas", absolute(run.sigmas, stored[f"{name}.sigmas"]), SIGMA_LIMIT)
    if f"{name}.timesteps" in stored:
        error = absolute(1000 * run.sigmas[:-1], stored[f"{name}.timesteps"]) / 1000
        yield judge(f"{place} timesteps", error, SIGMA_LIMIT, "thousandths")
    for part in ("model_outputs", "latents_per_step"):
        if f"{name}.{part}" in stored:
            error = absolute(getattr(run, part), stored[f"{name}.{part}"])
            yield judge(f"{place} {part}", error, LATENT_LIMIT)
    image = ((run.decoded.clamp(-1, 1) + 1) * 0.5).permute(0, 2, 3, 1)
    yield judge(f"{place} image", absolute(image, stored[f"{name}.image"]), IMAGE_LIMIT)
    pixels = torch.from_numpy(to_pixels(run.decoded))
    error = absolute(pixels, stored[f"{name}.image_u8"])
    yield judge(f"{place} image_u8", error, PIXEL_LIMIT, "steps of 255")


def _drawn(case: PictureCase, noise: Tensor) -> Tensor:
    if isinstance(case.seed, int):
        seeds = [case.seed] * noise.shape[0]
        return initial_noise(seeds, case.grid, noise.shape[-1], mode="microsoft")
    assert case.seed is not None
    return initial_noise(list(case.seed), case.grid, noise.shape[-1])


def run_parts(case: PictureCase, noise: Tensor, subject: Subject) -> Run:
    """The loop as the original runs it: both branches at every guidance scale."""
    num_tokens = case.grid[0] * case.grid[1]
    levels = sigmas(case.steps, empirical_mu(num_tokens, case.steps))
    modulations = subject.denoiser.modulations(levels[:-1])
    wanted = _texts(case, case.prompts, subject)
    unwanted = _texts(case, case.negatives, subject) or [None] * len(wanted)
    both = [
        [branch(subject.denoiser, text, case.grid, modulations) for text in texts]
        for texts in (wanted, unwanted)
    ]
    outputs: list[Tensor] = []

    def denoise(tokens: Tensor, sigma: float, call: int) -> Tensor:
        halves = [
            torch.cat([one(tokens[i : i + 1], sigma, call) for i, one in enumerate(half)])
            for half in both
        ]
        outputs.append(torch.cat(halves))
        # At guidance 1 the product runs one branch; what the original does comes to the same.
        if case.guidance_scale == 1:
            return halves[0]
        return guide(halves[0], halves[1], case.guidance_scale)

    steps = [step.tokens for step in sample(denoise, noise, levels)]
    vae = subject.autoencoder
    tokens = denormalise(steps[-1], vae.bn.running_mean, vae.bn.running_var, vae.bn.eps)
    return Run(
        sigmas=levels,
        model_outputs=torch.stack(outputs),
        latents_per_step=torch.stack(steps),
        decoded=vae.decode(unpatchify(tokens, case.grid)),
    )


def _texts(case: PictureCase, prompts: Sequence[str], subject: Subject) -> list[TextTokens | None]:
    """The text stream of every picture, prompt by prompt; None where no token is left."""
    encoded = subject.text.encode(prompts, date=case.date, max_tokens=case.max_sequence_length)
    streams: list[TextTokens | None] = []
    for features in encoded:
        text = None
        if features.num_tokens:
            text = subject.denoiser.embed_text([layer[None] for layer in features.layers])
        streams += [text] * case.num_images_per_prompt
    return streams


def _check_product(
    place: str, name: str, stored: GoldenFile, case: PictureCase, subject: Subject
) -> Iterator[CaseResult]:
    """The same through `Pipeline`, as a user would ask for it in `microsoft` numerics.

    Not where a blank negative prompt stands among others: there the pipeline departs on purpose.
    """
    if any(not text.strip() for text in case.negatives):
        return
    pipeline = Pipeline(
        name="golden",
        identity=subject.checkpoint.identity,
        text=subject.text,
        denoiser=subject.denoiser,
        autoencoder=subject.autoencoder,
        defaults=Defaults(),
    )
    request = GenerationRequest(
        prompt=case.prompts,
        negative_prompt=case.negatives or "",
        height=case.height,
        width=case.width,
        allow_any_size=True,
        steps=case.steps,
        guidance=case.guidance_scale,
        num_images=case.num_images_per_prompt,
        parity="microsoft",
        template_date=case.date,
        max_tokens=case.max_sequence_length,
        allow_blank=True,
    )
    images = {
        image.index: torch.from_numpy(image.pixels)
        for event in pipeline.steps(request, noise=stored[f"{name}.init_latents"])
        for image in event.images
    }
    pixels = torch.stack([images[index] for index in sorted(images)])
    error = absolute(pixels, stored[f"{name}.image_u8"])
    yield judge(f"{place} product", error, PIXEL_LIMIT, "the pipeline's own picture, steps of 255")
