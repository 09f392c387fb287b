"""The life of a picture: words → features → noise → steps → latents → pixels.

`Pipeline.steps` is that life on one screen, as a generator: progress, previews and cancellation are
what its consumer does between two steps. Pictures run through the networks one at a time unless a
larger `batch_size` is asked for: a batch of another size rounds differently, and a seed should give
the same bytes alone and in company.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

import petzval
from petzval.conditioning.encoder import PromptEncoder, PromptFeatures
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.errors import RequestError
from petzval.flow.sampler import Step, network_sigmas, sample
from petzval.flow.schedule import sigmas
from petzval.flow.solver import Denoise
from petzval.inference import numerics
from petzval.inference.denoise import branch, guided
from petzval.inference.device import choose_device, choose_dtype, device_name
from petzval.inference.event import Pixels, StageClock, StepEvent
from petzval.inference.loras import LoraAsked, LoraChoice, choose_loras
from petzval.inference.numerics import NoiseSource
from petzval.inference.plan import GenerationPlan, MadeBy, PlannedImage, make_plan
from petzval.inference.preview import SmallPreviews
from petzval.inference.recipe import UsedLora
from petzval.inference.request import GeneratedImage, GenerationRequest
from petzval.inference.variants import Defaults, locate
from petzval.models.latents import unpatchify
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.models.vae import Autoencoder
from petzval.shapes import Images, LatentTokens, TextTokens
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import read_lora

Asked: TypeAlias = GenerationRequest | GenerationPlan | str | Sequence[str]
"""What can be drawn: a request, a plan made from one, a prompt or several."""

_KEPT_SCHEDULES = 4


class Pipeline:
    """The three networks of a checkpoint, ready to draw.

    Args:
        name: of the variant or the checkpoint's folder; goes into recipes.
        identity: hash of the weights; goes into recipes.
        text: prompts → features.
        denoiser, autoencoder: on one device, in one dtype.
        defaults: what requests leave open.
        loras: what the denoiser's weights hold beyond the checkpoint's; goes into recipes.

    Attributes:
        previews: small pictures in the events of steps, once they have begun.
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
        loras: Sequence[UsedLora] = (),
    ) -> None:
        self.name = name
        self.identity = identity
        self.text = text
        self.denoiser = denoiser.eval()
        self.autoencoder = autoencoder.eval()
        self.defaults = defaults
        self.loras = tuple(loras)
        self.previews = SmallPreviews(autoencoder)
        self.dtype = denoiser.img_in.weight.dtype
        self.device = denoiser.img_in.weight.device
        self._made_by = MadeBy(
            petzval=petzval.__version__,
            model=name,
            checkpoint=identity,
            dtype=str(self.dtype).removeprefix("torch."),
            device=device_name(self.device),
            torch=torch.__version__,
            loras=tuple(loras),
        )
        self._folded: OrderedDict[tuple[float, ...], list[StepModulation]] = OrderedDict()
        self._dropped = False

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = "mini",
        *,
        device: str = "auto",
        dtype: str = "auto",
        lora: LoraAsked | Sequence[LoraAsked | LoraChoice] = (),
        text: PromptEncoder | None = None,
    ) -> Pipeline:
        """Load a variant by name, or any checkpoint in the published folder layout.

        LoRAs are added to the weights of this pipeline alone: they cost nothing while it draws,
        and one that is loaded without them has the checkpoint's own.

        Args:
            name_or_path: "mini", "lens-turbo" …, see `variants.locate`; or a folder.
            device: "cpu", "cuda", "cuda:1", "mps"; "auto" takes CUDA where there is one.
            dtype: "float32" or "bfloat16"; "auto" is float32 on a CPU, bfloat16 elsewhere.
            lora: a file ("style.safetensors", "style.safetensors:0.8"), a file and its weight, or
                several of these, whose changes are summed.
            text: in place of the checkpoint's text encoder, which is not loaded then.

        Raises:
            RequestError: unknown model, device or dtype; a LoRA is absent, its weight out of range.
            CheckpointError: the files are missing, damaged or of another shape, also a LoRA's.
        """
        located = locate(name_or_path)
        choices = choose_loras(lora)
        place = choose_device(device)
        number = choose_dtype(dtype, place)
        checkpoint = Checkpoint.open(located.folder)
        identity = checkpoint.identity
        loras = [(read_lora(c.path, checkpoint.denoiser_config), c.weight) for c in choices]
        if text is None:
            tokenizer = PromptTokenizer(checkpoint.tokenizer_folder)
            encoder = checkpoint.load_encoder(number, place)
            text = PromptEncoder(encoder, tokenizer, checkpoint_id=identity)
        return cls(
            name=located.name,
            identity=identity,
            text=text,
            denoiser=checkpoint.load_denoiser(number, place, loras=loras),
            autoencoder=checkpoint.load_vae(number, place),
            defaults=located.defaults,
            loras=[
                UsedLora(file=each.name, sha256=each.sha256, weight=weight)
                for each, weight in loras
            ],
        )

    def generate(
        self,
        request: Asked,
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
        request: Asked,
        *,
        batch_size: int = 1,
        noise: LatentTokens | None = None,
        leave_decoding: bool = False,
        **options: Any,
    ) -> Iterator[StepEvent]:
        """The same, step by step; stop iterating to stop the work. See `generate`.

        Args:
            noise: [pictures, tokens, channels] in place of the seeds' own; recipes do not remember
                it.
            leave_decoding: the last step's event has no pictures but `finish`, which decodes them
                in whatever thread calls it, while the next ones are drawn in this one.

        Raises:
            RequestError: the request cannot be served, or the noise is of another shape; raised at
                the call, before the first step.
            NumericsError: while iterating: a number stopped being finite.
        """
        plan = self.plan(request, **options)
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, got {batch_size}")
        height, width = plan.resolution.grid
        expected = (len(plan.images), height * width, self.denoiser.config.in_channels)
        if noise is not None and tuple(noise.shape) != expected:
            raise RequestError(
                f"noise of shape {list(noise.shape)}, expected {list(expected)}: "
                "pictures, tokens, channels"
            )
        source = NoiseSource((height, width), expected[2], plan.parity, self.dtype)
        source.check(plan.images)
        return self._run(plan, batch_size, source if noise is None else noise, leave_decoding)

    def _run(
        self,
        plan: GenerationPlan,
        batch_size: int,
        noise: NoiseSource | LatentTokens,
        leave_decoding: bool,
    ) -> Iterator[StepEvent]:
        levels, modulations = self._schedule(plan)
        state_dtype = self.dtype if plan.parity.state_in_network_dtype else torch.float32
        for images in self._batches(plan, batch_size):
            clock = StageClock()
            denoise = self._denoise(plan, images, modulations)
            clock.lap("encode")
            tokens = _noise(images, noise).to(self.device)
            for step in sample(denoise, tokens, levels, plan.solver, state_dtype=state_dtype):
                _check(step, images, self.dtype)
                clock.lap("denoise")
                event = self._event(plan, images, step)
                if step.index + 1 == step.num_steps:
                    finish = partial(self._finish, plan, images, step.tokens, clock)
                    event = (
                        replace(event, finish=cache(finish))
                        if leave_decoding
                        else replace(event, images=finish())
                    )
                yield event
                if step.index + 1 < step.num_steps:  # else the clock may be another thread's
                    clock.resume()

    def plan(self, request: Asked, **options: Any) -> GenerationPlan:
        """What would be done for a request, without doing it; see `make_plan`.

        Raises:
            RequestError: the request cannot be served; or options on top of a finished plan.
        """
        if isinstance(request, GenerationPlan):
            if options:
                raise RequestError(
                    f"a plan is decided, and cannot take {', '.join(options)} any more",
                    "give the options with the request that the plan is made from",
                )
            return request
        if isinstance(request, GenerationRequest):
            return make_plan(replace(request, **options), self.defaults)
        return make_plan(GenerationRequest(prompt=request, **options), self.defaults)

    def encode_prompts(self, plan: GenerationPlan) -> None:
        """Encode a plan's words now; drawing it finds their features in the cache."""
        prompts = [image.prompt for image in plan.images]
        negatives = [image.negative_prompt for image in plan.images if image.negative_prompt]
        self._encode(plan, prompts + (negatives if plan.guidance != 1.0 else []))

    def fold(self, request: Asked, **options: Any) -> int:
        """Compute the modulations of a request's schedule and drop their weights.

        A third of the denoiser's parameters depend on the noise level alone. Afterwards requests
        with the same number of tokens and steps, mu, solver and mode are served, and no others.

        Returns:
            Bytes freed on the device.

        Raises:
            RequestError: the request cannot be served.
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

    def _batches(self, plan: GenerationPlan, size: int) -> Iterable[tuple[PlannedImage, ...]]:
        """Pictures that may share a batch: their texts are of one length, so nothing is padded."""
        if size == 1:
            return [(image,) for image in plan.images]
        prompts = [image.prompt for image in plan.images]
        negatives = [image.negative_prompt for image in plan.images if image.negative_prompt]
        unique = list(dict.fromkeys(prompts + negatives))
        encoded = zip(unique, self._encode(plan, unique), strict=True)
        return plan.batches(size, {prompt: each.num_tokens for prompt, each in encoded})

    def _denoise(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        modulations: Sequence[StepModulation],
    ) -> Denoise:
        """(tokens, sigma, call) → velocity, with words and guidance inside."""
        grid = plan.resolution.grid
        text = self._text_tokens(plan, [image.prompt for image in images])
        conditional = branch(self.denoiser, text, grid, modulations)
        if plan.guidance == 1.0:
            return conditional
        negatives = [image.negative_prompt for image in images if image.negative_prompt]
        text = self._text_tokens(plan, negatives) if negatives else None
        unconditional = branch(self.denoiser, text, grid, modulations)
        exact = not plan.parity.state_in_network_dtype
        return guided(conditional, unconditional, plan.guidance, exact=exact)

    @torch.no_grad()
    def _text_tokens(self, plan: GenerationPlan, prompts: Sequence[str]) -> TextTokens:
        """The denoiser's text stream [B, T, width] for prompts of one length."""
        encoded = self._encode(plan, prompts)
        layers = [torch.stack(parts) for parts in zip(*(f.layers for f in encoded), strict=True)]
        for layer in layers:
            numerics.check_finite(layer, "text features", self.dtype)
        return self.denoiser.embed_text(layers)

    def _encode(self, plan: GenerationPlan, prompts: Sequence[str]) -> list[PromptFeatures]:
        return self.text.encode(
            prompts,
            date=plan.template_date,
            truncate=plan.truncate,
            markers=plan.markers,
            max_tokens=plan.max_tokens,
        )

    def _pixels(self, tokens: Tensor, plan: GenerationPlan) -> Pixels:
        decoded = self.decode(tokens, plan)
        numerics.check_finite(decoded, "decoded picture", self.dtype)
        return numerics.to_pixels(decoded)

    def _event(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        step: Step,
    ) -> StepEvent:
        return StepEvent(
            indices=tuple(image.index for image in images),
            step=step.index + 1,
            num_steps=step.num_steps,
            sigma=step.sigma_next,
            images=(),
            preview=lambda: self._pixels(step.data_estimate, plan),
            small_preview=self.previews.of(lambda: step.data_estimate, plan.resolution.grid),
        )

    def _finish(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        tokens: LatentTokens,
        clock: StageClock,
    ) -> tuple[GeneratedImage, ...]:
        """Decode the pictures; the time it takes is the last that their clock measures."""
        clock.resume()
        pixels = self._pixels(tokens, plan)
        clock.lap("decode")
        threads = torch.get_num_threads() if self.device.type == "cpu" else None
        made_by = replace(self._made_by, threads=threads)
        share = {stage: time / len(images) for stage, time in clock.seconds.items()}
        return tuple(
            GeneratedImage(
                pixels=pixels[row],
                recipe=plan.recipe(image, made_by),
                seconds=share,
                index=image.index,
            )
            for row, image in enumerate(images)
        )


def _noise(images: Sequence[PlannedImage], noise: NoiseSource | Tensor) -> Tensor:
    """The rows of some pictures, drawn or given."""
    if isinstance(noise, Tensor):
        return noise[[image.index for image in images]]
    return noise.rows(images)


def _check(step: Step, images: Sequence[PlannedImage], dtype: torch.dtype) -> None:
    """Stop where a number is not finite any more, in place of a black picture."""
    numbers = " and ".join(str(image.index + 1) for image in images)
    where = f"picture {numbers}, step {step.index + 1} of {step.num_steps}"
    numerics.check_finite(step.tokens, where, dtype)


def load(
    name_or_path: str | Path = "mini",
    *,
    device: str = "auto",
    dtype: str = "auto",
    lora: LoraAsked | Sequence[LoraAsked | LoraChoice] = (),
) -> Pipeline:
    """Load a model by name or path: see `Pipeline.load`.

    Raises:
        RequestError, CheckpointError: as `Pipeline.load`.
    """
    return Pipeline.load(name_or_path, device=device, dtype=dtype, lora=lora)
