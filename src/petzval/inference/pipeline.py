"""The life of a picture: words → features → noise → steps → latents → pixels.

`Pipeline.steps` is that life on one screen, as a generator: progress, previews and cancellation are
what its consumer does between two steps. Pictures run through the networks one at a time unless a
larger `batch_size` is asked for: a batch of another size rounds differently, and a seed should give
the same bytes alone and in company.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import petzval
from petzval.conditioning.encoder import PromptEncoder, PromptFeatures
from petzval.errors import PlacementError, RequestError
from petzval.flow.sampler import Step, network_sigmas, sample
from petzval.flow.schedule import sigmas
from petzval.flow.solver import Denoise
from petzval.inference import numerics
from petzval.inference.denoise import brought, guided
from petzval.inference.device import device_name
from petzval.inference.event import Pixels, StageClock, StepEvent
from petzval.inference.graphs import GraphedDenoiser
from petzval.inference.loras import LoraAsked, LoraChoice, choose_loras
from petzval.inference.numerics import Noise, NoiseSource
from petzval.inference.placement import DENOISER, ENCODER, Placement, choose_storage
from petzval.inference.plan import Asked, GenerationPlan, MadeBy, PlannedImage, decide
from petzval.inference.planner import Amount, Budget
from petzval.inference.planning import MemoryWarning, Planning, default_work
from petzval.inference.recipe import UsedLora
from petzval.inference.request import GeneratedImage
from petzval.inference.residency import Networks, Residency
from petzval.inference.variants import Defaults, locate
from petzval.inference.words import worded_branch
from petzval.kernels import backends
from petzval.models.latents import unpatchify
from petzval.models.mmdit import MMDiT, StepModulation
from petzval.models.strips import decode_in_strips
from petzval.models.vae import Autoencoder
from petzval.shapes import Images, LatentTokens

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
        residency: where the networks are and when; left out, they are there for good.
        planning: makes a smaller plan where memory runs out.
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
        residency: Residency | None = None,
        planning: Planning | None = None,
    ) -> None:
        self.name = name
        self.identity = identity
        self.text = text
        self.defaults = defaults
        self.loras = tuple(loras)
        self._planning = planning
        networks = Networks(encoder=text.encoder, denoiser=denoiser, autoencoder=autoencoder)
        self._adopt(residency or Residency.of(networks))
        self.dtype = self._residency.dtype
        self.device = self._residency.device
        self._made_by = MadeBy(
            petzval=petzval.__version__,
            model=name,
            checkpoint=identity,
            dtype=str(self.dtype).removeprefix("torch."),
            device=device_name(self.device),
            torch=torch.__version__,
            loras=tuple(loras),
            weights="exact" if planning is None else planning.storage,
        )
        self._folded: OrderedDict[tuple[float, ...], list[StepModulation]] = OrderedDict()
        self._dropped = False
        self.graphs: GraphedDenoiser | None = None

    @property
    def networks(self) -> Networks:
        """All three, whether their weights are in place or not."""
        return self._residency.networks

    @property
    def denoiser(self) -> MMDiT:
        """The denoiser, its weights in place."""
        return self._residency.denoiser

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, its weights in place."""
        return self._residency.autoencoder

    def _adopt(self, residency: Residency) -> None:
        self._residency = residency
        self.text.encoder = residency.networks.encoder
        self.text.bring = lambda: residency.bring(ENCODER)
        self.text.use_prefix_cache &= not residency.streams(ENCODER)

    @property
    def placement(self) -> Placement | None:
        """The plan of memory that is followed; None where everything is there for good."""
        return self._residency.placement

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = "mini",
        *,
        device: str = "auto",
        dtype: str = "auto",
        lora: LoraAsked | Sequence[LoraAsked | LoraChoice] = (),
        memory: Amount = None,
        ram: Amount = None,
        quantise: str = "exact",
        request: Asked | None = None,
    ) -> Pipeline:
        """Load a variant by name, or any checkpoint in the published folder layout.

        LoRAs are added to the weights of this pipeline alone. With a limit of memory, a placement
        is computed first and then followed; the picture is the same unless `quantise` is asked for.

        Args:
            name_or_path: "mini", "lens-turbo" …, see `variants.locate`; or a folder.
            device: "cpu", "cuda", "cuda:1", "xpu", "mps"; "auto" takes an accelerator where there
                is one.
            dtype: "float32", "bfloat16" or "float16"; "auto" is float32 on a CPU, elsewhere
                bfloat16 where the device has it.
            lora: a file ("style.safetensors", "style.safetensors:0.8"), a file and its weight, or
                several of these, whose changes are summed.
            memory: the device's, as "8GB" or in bytes; on a CPU that of the process.
            ram: this process's, where another device draws.
            quantise: "float8", "int8" or "int4" keeps the denoiser's blocks in fewer bits.
            request: for what to plan; left out, a picture of the checkpoint's own size.

        Raises:
            RequestError: unknown model, device or dtype; a LoRA is absent, its weight out of range.
            CheckpointError: the files are missing, damaged or of another shape, also a LoRA's.
            PlacementError: nothing fits into the memory.
        """
        located = locate(name_or_path)
        planning = Planning.open(
            located.folder,
            choose_loras(lora),
            device=device,
            dtype=dtype,
            budget=Budget.of(memory, ram),
            storage=choose_storage(quantise),
        )
        work = default_work(located.defaults)
        if request is not None:
            work = planning.work(decide(request, located.defaults))
        residency = planning.settle(work)
        identity = planning.checkpoint.identity
        networks = residency.networks
        return cls(
            name=located.name,
            identity=identity,
            text=PromptEncoder(networks.encoder, planning.tokenizer, checkpoint_id=identity),
            denoiser=networks.denoiser,
            autoencoder=networks.autoencoder,
            defaults=located.defaults,
            loras=planning.used_loras,
            residency=residency,
            planning=planning,
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
            batch_size: pictures that run through the networks together; prompts of different
                lengths share a row without padding. Above 1 the last bits depend on the company.

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
        **options: Any,
    ) -> Iterator[StepEvent]:
        """The same, step by step; stop iterating to stop the work. See `generate`.

        Args:
            noise: [pictures, tokens, channels] in place of the seeds' own; recipes do not remember
                it.

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
        return self._run(plan, batch_size, source if noise is None else noise)

    def _run(self, plan: GenerationPlan, batch_size: int, noise: Noise) -> Iterator[StepEvent]:
        for images in self._batches(plan, batch_size):
            yield from self._with_retries(plan, images, noise)

    def _with_retries(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        noise: NoiseSource | LatentTokens,
    ) -> Iterator[StepEvent]:
        """Draw; where memory runs out, under a smaller plan from the first step again."""
        while True:
            try:
                yield from self._draw(plan, images, noise)
                return
            except (RuntimeError, MemoryError) as error:
                if not backends.is_out_of_memory(error):
                    raise
            # Out here the error and the tensors that its traceback held are gone.
            self._shrink(plan)

    def _draw(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        noise: NoiseSource | LatentTokens,
    ) -> Iterator[StepEvent]:
        clock = StageClock()
        if not self._residency.keeps(ENCODER):
            self._encode(plan, plan.texts)  # all of them before it leaves
        levels, modulations = self._schedule(plan)
        denoise = self._denoise(plan, images, modulations)
        clock.lap("encode")
        tokens = numerics.noise_of(images, noise).to(self.device)
        state_dtype = self.dtype if plan.parity.state_in_network_dtype else torch.float32
        for step in sample(denoise, tokens, levels, plan.solver, state_dtype=state_dtype):
            numerics.check_step(step, images, self.dtype)
            clock.lap("denoise")
            finished: tuple[GeneratedImage, ...] = ()
            if step.index + 1 == step.num_steps:
                pixels = self._pixels(step.tokens, plan)
                clock.lap("decode")
                finished = self._finish(plan, images, pixels, clock.seconds)
            yield self._event(plan, images, step, finished)
            clock.resume()

    def _shrink(self, plan: GenerationPlan) -> None:
        """Follow a smaller placement; the pictures of the old one are drawn again.

        Raises:
            PlacementError: there is none.
        """
        if self._planning is None:
            raise PlacementError(f"memory ran out at {plan.resolution}", "draw a smaller --size")
        self._residency.release()
        placement = self._planning.smaller(self._planning.work(plan), self.placement)
        warnings.warn(f"memory ran out; going on with: {placement}", MemoryWarning, stacklevel=2)
        self._adopt(self._planning.follow(placement))

    def plan(self, request: Asked, **options: Any) -> GenerationPlan:
        """What would be done for a request, without doing it; see `make_plan`.

        Raises:
            RequestError: the request cannot be served; or options on top of a finished plan.
        """
        return decide(request, self.defaults, **options)

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
        autoencoder, rows = self.autoencoder, self._residency.strip_rows
        dtype = autoencoder.post_quant_conv.weight.dtype
        tokens = numerics.restore_statistics(tokens, autoencoder.bn, plan.parity, dtype)
        latents = unpatchify(tokens, plan.resolution.grid)
        if rows:
            return decode_in_strips(autoencoder, latents, rows=rows)
        return autoencoder.decode(latents)

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
        """Pictures that share a batch; as few batches as can be hold texts of several lengths."""
        if size == 1:
            return [(image,) for image in plan.images]
        encoded = zip(plan.texts, self._encode(plan, plan.texts), strict=True)
        return plan.batches(size, {prompt: each.num_tokens for prompt, each in encoded})

    def _denoise(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        modulations: Sequence[StepModulation],
    ) -> Denoise:
        """(tokens, sigma, call) → velocity, with words and guidance inside."""
        conditional = self._branch(plan, [image.prompt for image in images], modulations)
        if plan.guidance == 1.0:
            return conditional
        unconditional = self._branch(plan, [each.negative_prompt for each in images], modulations)
        exact = not plan.parity.state_in_network_dtype
        return guided(conditional, unconditional, plan.guidance, exact=exact)

    def _branch(
        self, plan: GenerationPlan, prompts: Sequence[str | None], steps: Sequence[StepModulation]
    ) -> Denoise:
        """One prompt a picture; one that is blank is no text."""
        encoded = iter(self._encode(plan, [prompt for prompt in prompts if prompt]))
        words = [next(encoded) if prompt else None for prompt in prompts]
        grid = plan.resolution.grid
        velocity = worded_branch(self.denoiser, words, grid, steps, self.dtype, self.graphs)
        return brought(velocity, partial(self._residency.bring, DENOISER))

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
        pixels: Pixels,
        seconds: Mapping[str, float],
    ) -> tuple[GeneratedImage, ...]:
        threads = torch.get_num_threads() if self.device.type == "cpu" else None
        made_by = replace(self._made_by, threads=threads)
        share = {stage: time / len(images) for stage, time in seconds.items()}
        return tuple(
            GeneratedImage(
                pixels=pixels[row],
                recipe=plan.recipe(image, made_by),
                seconds=share,
                index=image.index,
            )
            for row, image in enumerate(images)
        )


load = Pipeline.load
