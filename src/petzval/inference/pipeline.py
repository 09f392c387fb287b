"""The life of a picture: words → features → noise → steps → latents → pixels.

`Pipeline.steps` is that life on one screen, as a generator: progress, previews and cancellation are
what its consumer does between two steps. Pictures run through the networks one at a time unless a
larger `batch_size` is asked for: a batch of another size rounds differently, and a seed should give
the same bytes alone and in company.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import petzval
from petzval.conditioning.encoder import PromptEncoder, PromptFeatures
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import RequestError
from petzval.flow.guidance import guide
from petzval.flow.sampler import Step, network_sigmas, sample
from petzval.flow.schedule import empirical_mu, sigmas, warn_off_family
from petzval.flow.solver import Denoise
from petzval.inference import numerics
from petzval.inference.device import choose_device, choose_dtype, device_name
from petzval.inference.recipe import Recipe
from petzval.inference.request import (
    GeneratedImage,
    GenerationPlan,
    GenerationRequest,
    PlannedImage,
    make_plan,
)
from petzval.inference.variants import Defaults, locate
from petzval.models.latents import unpatchify
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.models.rope import mmdit_rope
from petzval.models.vae import Autoencoder
from petzval.shapes import Images, LatentTokens, TextTokens
from petzval.weights.checkpoint import Checkpoint

_KEPT_SCHEDULES = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepEvent:
    """One solver step of one picture, or of a batch of them.

    Attributes:
        indices: which pictures of the request.
        step, num_steps: 1 … num_steps.
        sigma: noise level after the step; 0 after the last one.
        images: the finished pictures, with the last step only.
        preview: call it for the picture as it looks from here, 8-bit [batch, height, width, 3].
    """

    indices: tuple[int, ...]
    step: int
    num_steps: int
    sigma: float
    images: tuple[GeneratedImage, ...]
    preview: Callable[[], np.ndarray[Any, np.dtype[np.uint8]]]


class Pipeline:
    """The three networks of a checkpoint, ready to draw.

    Args:
        name: of the variant or the checkpoint's folder; goes into recipes.
        identity: hash of the weights; goes into recipes.
        text: prompts → features.
        denoiser, autoencoder: on `device`, in one dtype.
        defaults: what requests leave open.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: str,
        text: PromptEncoder,
        denoiser: MMDiT,
        autoencoder: Autoencoder,
        defaults: Defaults,
        device: torch.device,
    ) -> None:
        self.name = name
        self.identity = identity
        self.text = text
        self.denoiser = denoiser.eval()
        self.autoencoder = autoencoder.eval()
        self.defaults = defaults
        self.device = device
        self.dtype = denoiser.img_in.weight.dtype
        self._folded: OrderedDict[tuple[float, ...], list[StepModulation]] = OrderedDict()
        self._dropped = False

    @classmethod
    def load(
        cls, name_or_path: str | Path = "mini", *, device: str = "auto", dtype: str = "auto"
    ) -> Pipeline:
        """Load a variant by name, or any checkpoint in the published folder layout.

        Args:
            name_or_path: "mini", "lens-turbo" …, see `variants.locate`; or a folder.
            device: "cpu", "cuda", "cuda:1", "mps"; "auto" takes CUDA where there is one.
            dtype: "float32" or "bfloat16"; "auto" is float32 on a CPU, bfloat16 elsewhere.

        Raises:
            RequestError: unknown model, device or dtype.
            CheckpointError: the files are missing, damaged or of another shape.
        """
        located = locate(name_or_path)
        place = choose_device(device)
        number = choose_dtype(dtype, place)
        checkpoint = Checkpoint.open(located.folder)
        text = PromptEncoder(
            checkpoint.load_encoder(number, place),
            PromptTokenizer(checkpoint.tokenizer_folder),
            checkpoint_id=checkpoint.identity,
        )
        return cls(
            name=located.name,
            identity=checkpoint.identity,
            text=text,
            denoiser=checkpoint.load_denoiser(number, place),
            autoencoder=checkpoint.load_vae(number, place),
            defaults=located.defaults,
            device=place,
        )

    def generate(
        self,
        request: GenerationRequest | str | Sequence[str],
        progress: Callable[[StepEvent], object] | None = None,
        *,
        batch_size: int = 1,
        **options: Any,
    ) -> list[GeneratedImage]:
        """All pictures of a request, prompt by prompt.

        Args:
            request: a request; or a prompt or several, with the request's other fields as options:
                `generate("a red fox", seed=7, size="256x256")`.
            progress: called after every step.
            batch_size: pictures that run through the networks together, where their prompts have
                the same number of tokens. Above 1 the last bits depend on the company.

        Raises:
            RequestError: the request cannot be served.
            NumericsError: a number stopped being finite.
        """
        images: list[GeneratedImage] = []
        for event in self.steps(request, batch_size=batch_size, **options):
            if progress is not None:
                progress(event)
            images.extend(event.images)
        return sorted(images, key=lambda image: image.index)

    def steps(
        self,
        request: GenerationRequest | str | Sequence[str],
        *,
        batch_size: int = 1,
        **options: Any,
    ) -> Iterator[StepEvent]:
        """The same, step by step; stop iterating to stop the work. See `generate`."""
        plan = self.plan(request, **options)
        grid, channels = plan.resolution.grid, self.denoiser.config.in_channels
        levels, modulations = self._schedule(plan)
        state_dtype = self.dtype if plan.parity.state_in_network_dtype else torch.float32
        for images in self._batches(plan, batch_size):
            clock = _Clock()
            denoise = self._denoise(plan, images, modulations)
            clock.lap("encode")
            noise = numerics.noise_for(images, grid, channels, plan.parity, self.dtype)
            states = sample(
                denoise, noise.to(self.device), levels, plan.solver, state_dtype=state_dtype
            )
            for step in states:
                self._check(step, images)
                clock.lap("denoise")
                finished: tuple[GeneratedImage, ...] = ()
                if step.index + 1 == step.num_steps:
                    pixels = self._pixels(step.tokens, plan)
                    clock.lap("decode")
                    finished = self._finish(plan, images, pixels, clock.seconds)
                yield self._event(plan, images, step, finished)

    def plan(
        self, request: GenerationRequest | str | Sequence[str], **options: Any
    ) -> GenerationPlan:
        """What would be done for a request, without doing it.

        Warns:
            ScheduleWarning: the size lies where the empirical schedule was not fitted.
        """
        if not isinstance(request, GenerationRequest):
            request = GenerationRequest(prompt=request, **options)
        elif options:
            request = replace(request, **options)
        plan = make_plan(request, self.defaults)
        if plan.mu is None:
            warn_off_family(plan.resolution.num_tokens)
            plan = replace(plan, mu=empirical_mu(plan.resolution.num_tokens, plan.steps))
        return plan

    def fold(self, request: GenerationRequest | str | Sequence[str], **options: Any) -> int:
        """Compute the modulations of a request's schedule and drop their weights.

        A third of the denoiser's parameters depend on the noise level alone. Afterwards requests
        with the same number of tokens and steps, mu, solver and mode are served, and no others.

        Returns:
            Bytes freed on the device.
        """
        self._schedule(self.plan(request, **options))
        self._dropped = True
        return self.denoiser.drop_modulation()

    @torch.no_grad()
    def decode(self, tokens: LatentTokens, plan: GenerationPlan) -> Images:
        """Denoised tokens → pictures, nominally in [-1, 1], not clamped."""
        dtype = self.autoencoder.post_quant_conv.weight.dtype
        tokens = numerics.restore_statistics(tokens, self.autoencoder.bn, plan.parity, dtype)
        return self.autoencoder.decode(unpatchify(tokens, plan.resolution.grid))

    @torch.no_grad()
    def _schedule(self, plan: GenerationPlan) -> tuple[Tensor, list[StepModulation]]:
        """Noise levels, and what they do to every block, evaluated once per schedule."""
        assert plan.mu is not None
        levels = sigmas(plan.steps, plan.mu)
        calls = network_sigmas(levels, plan.solver)
        seen = numerics.levels_seen(calls, plan.parity, self.dtype)
        key = tuple(seen.tolist())
        if key not in self._folded:
            if self._dropped:
                raise RequestError(
                    "this pipeline was folded for another schedule",
                    "ask for the same size, steps, mu, solver and parity, or load the model again",
                )
            self._folded[key] = self.denoiser.modulations(seen.to(self.device))
            if len(self._folded) > _KEPT_SCHEDULES:
                self._folded.popitem(last=False)
        self._folded.move_to_end(key)
        return levels, self._folded[key]

    def _encode(self, plan: GenerationPlan, prompts: Sequence[str]) -> list[PromptFeatures]:
        return self.text.encode(
            prompts,
            date=plan.template_date,
            truncate=plan.truncate,
            markers=plan.markers,
            max_tokens=plan.max_tokens,
        )

    def _batches(self, plan: GenerationPlan, size: int) -> Iterator[tuple[PlannedImage, ...]]:
        """Pictures whose prompts, and whose negative prompts, are of one length: nothing is padded."""
        if size == 1:
            yield from ((image,) for image in plan.images)
            return
        words = [image.prompt for image in plan.images]
        words += [image.negative_prompt for image in plan.images if image.negative_prompt]
        unique = list(dict.fromkeys(words))
        lengths = {
            prompt: features.num_tokens
            for prompt, features in zip(unique, self._encode(plan, unique), strict=True)
        }
        groups: dict[tuple[int, int], list[PlannedImage]] = {}
        for image in plan.images:
            negative = lengths[image.negative_prompt] if image.negative_prompt else 0
            groups.setdefault((lengths[image.prompt], negative), []).append(image)
        for group in groups.values():
            for start in range(0, len(group), size):
                yield tuple(group[start : start + size])

    @torch.no_grad()
    def _text_tokens(self, plan: GenerationPlan, prompts: Sequence[str]) -> TextTokens:
        """The denoiser's text stream [B, T, width] for prompts of one length."""
        encoded = self._encode(plan, prompts)
        layers = [torch.stack(parts) for parts in zip(*(f.layers for f in encoded), strict=True)]
        for layer in layers:
            numerics.check_finite(layer, "text features", self.dtype)
        return self.denoiser.embed_text(layers)

    def _denoise(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        modulations: Sequence[StepModulation],
    ) -> Denoise:
        """The denoiser with its words and its guidance inside: (tokens, sigma, call) → velocity."""
        conditional = self._branch(plan, [image.prompt for image in images], modulations)
        if plan.guidance == 1.0:
            return conditional
        negatives = [image.negative_prompt for image in images if image.negative_prompt]
        unconditional = self._branch(plan, negatives, modulations)

        def guided(tokens: Tensor, sigma: float, call: int) -> Tensor:
            wanted, unwanted = (
                branch(tokens, sigma, call) for branch in (conditional, unconditional)
            )
            if not plan.parity.state_in_network_dtype:
                wanted, unwanted = wanted.float(), unwanted.float()
            return guide(wanted, unwanted, plan.guidance)

        return guided

    def _branch(
        self, plan: GenerationPlan, prompts: Sequence[str], modulations: Sequence[StepModulation]
    ) -> Denoise:
        """One branch; without prompts it has no text stream at all."""
        text = self._text_tokens(plan, prompts) if prompts else None
        rope = mmdit_rope(
            plan.resolution.grid,
            0 if text is None else text.shape[1],
            self.denoiser.config.axes_dims_rope,
            device=self.device,
        )

        @torch.no_grad()
        def velocity(tokens: Tensor, _sigma: float, call: int) -> Tensor:
            return self.denoiser(tokens, text, modulations[call], rope)

        return velocity

    def _check(self, step: Step, images: Sequence[PlannedImage]) -> None:
        numbers = " and ".join(str(image.index + 1) for image in images)
        what = f"picture {numbers}, step {step.index + 1} of {step.num_steps}"
        numerics.check_finite(step.tokens, what, self.dtype)

    def _pixels(self, tokens: Tensor, plan: GenerationPlan) -> np.ndarray[Any, np.dtype[np.uint8]]:
        decoded = self.decode(tokens, plan)
        numerics.check_finite(decoded, "decoded picture", self.dtype)
        return numerics.to_pixels(decoded)

    def _event(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        step: Step,
        finished: tuple[GeneratedImage, ...],
    ) -> StepEvent:
        return StepEvent(
            indices=tuple(image.index for image in images),
            step=step.index + 1,
            num_steps=step.num_steps,
            sigma=step.sigma_next,
            images=finished,
            preview=lambda: self._pixels(step.data_estimate, plan),
        )

    def _finish(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        pixels: np.ndarray[Any, np.dtype[np.uint8]],
        seconds: dict[str, float],
    ) -> tuple[GeneratedImage, ...]:
        share = {stage: time / len(images) for stage, time in seconds.items()}
        return tuple(
            GeneratedImage(
                pixels=pixels[row],
                recipe=self._recipe(plan, image),
                seconds=share,
                index=image.index,
            )
            for row, image in enumerate(images)
        )

    def _recipe(self, plan: GenerationPlan, image: PlannedImage) -> Recipe:
        assert plan.mu is not None
        return Recipe(
            petzval=petzval.__version__,
            model=self.name,
            checkpoint=self.identity,
            prompt=image.prompt,
            negative_prompt=image.negative_prompt or "",
            seed=image.seed,
            steps=plan.steps,
            guidance=plan.guidance,
            height=plan.resolution.height,
            width=plan.resolution.width,
            mu=plan.mu,
            solver=plan.solver,
            parity=plan.parity.name,
            template_date=plan.template_date,
            truncate=plan.truncate,
            markers=plan.markers,
            max_tokens=plan.max_tokens,
            noise_row=image.noise_row,
            allow_any_size=plan.allow_any_size,
            dtype=str(self.dtype).removeprefix("torch."),
            device=device_name(self.device),
            torch=torch.__version__,
        )


class _Clock:
    """Seconds per stage of one batch; what its consumer does between steps is not counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def load(
    name_or_path: str | Path = "mini", *, device: str = "auto", dtype: str = "auto"
) -> Pipeline:
    """Load a model by name or path: see `Pipeline.load`."""
    return Pipeline.load(name_or_path, device=device, dtype=dtype)
