"""The life of a picture: words → features → noise → steps → latents → pixels.

`Pipeline.steps` is that life on one screen, as a generator: progress, previews and cancellation are
what its consumer does between two steps. Pictures run through the networks one at a time unless a
larger `batch_size` is asked for: a batch of another size rounds differently.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from petzval.conditioning.encoder import PromptEncoder
from petzval.errors import RequestError
from petzval.flow.sampler import Step, sample
from petzval.inference import numerics
from petzval.inference.event import StageClock, StepEvent
from petzval.inference.finishing import Finishing
from petzval.inference.folding import FoldedSchedules
from petzval.inference.loras import LoraAsked, LoraChoice, choose_loras, reweighed
from petzval.inference.moving import Moving
from petzval.inference.numerics import Noise
from petzval.inference.parts import Parts
from petzval.inference.placement import Placement, choose_storage
from petzval.inference.plan import Asked, GenerationPlan, MadeBy, PlannedImage, decide
from petzval.inference.planning import Planning, default_work
from petzval.inference.recipe import UsedLora
from petzval.inference.request import GeneratedImage
from petzval.inference.residency import Networks, Residency
from petzval.inference.terms import Amount, Budget, Terms
from petzval.inference.variants import DEFAULT_MODEL, Defaults, locate
from petzval.kernels import backends
from petzval.models.mmdit import MMDiT
from petzval.models.vae import Autoencoder
from petzval.shapes import Images, LatentTokens
from petzval.weights.lora_live import LiveLoras


class Pipeline:
    """The three networks of a checkpoint, ready to draw.

    Args:
        name: of the variant or the checkpoint's folder; goes into recipes.
        identity: hash of the weights; goes into recipes.
        text: prompts → features.
        denoiser, autoencoder: on one device, in one dtype.
        defaults: what requests leave open.
        loras: what the denoiser does beyond the checkpoint's weights; goes into recipes.
        live: the same LoRAs where they are beside the weights and not in them.
        residency: where the networks are and when; left out, they are there for good.
        planning: makes a smaller plan where a request needs one, or memory runs out.

    Attributes:
        moving: where the networks are at present, how they come to be elsewhere, who uses them.
        planning: what it was loaded with; None where the networks were given.
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
        live: LiveLoras | None = None,
        residency: Residency | None = None,
        planning: Planning | None = None,
    ) -> None:
        self.name, self.identity = name, identity
        self.text = text
        self.defaults = defaults
        self.loras = tuple(loras)
        self.planning = planning
        self._live = live
        # A given encoder may be elsewhere: the residency then has one without numbers.
        residency = residency or Residency.of(text.encoder, denoiser, autoencoder)
        self.moving = Moving(residency, text, planning, live)
        self.dtype, self.device = residency.dtype, residency.device
        self._words = self.moving.words
        self._finishing = Finishing(lambda: self.moving.residency, lambda: planning)
        self._made_by = MadeBy.here(name, identity, self.dtype, self.device, self.loras)
        self._folded = FoldedSchedules(self.dtype, self.device)

    @property
    def networks(self) -> Networks:
        """All three, whether their weights are in place or not."""
        return self.moving.residency.networks

    @property
    def denoiser(self) -> MMDiT:
        """The denoiser, its weights in place."""
        return self.moving.residency.denoiser

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, its weights in place."""
        return self.moving.residency.autoencoder

    @property
    def placement(self) -> Placement | None:
        """The plan of memory that is followed; None where everything is there for good."""
        return self.moving.residency.placement

    @property
    def terms(self) -> Terms | None:
        """On which that plan was chosen."""
        return self.moving.residency.terms

    def put_out(self) -> None:
        """Put out weights that a placement can bring again, what waits to be decoded decoded."""
        if self.placement is not None:
            self.moving.put_out()
            self._folded.clear()  # on the device, and counted for one pipeline alone

    def concurrent(self, plan: GenerationPlan) -> bool:
        """Whether a plan's words may be encoded in another thread beside what is being drawn."""
        moving = self.moving
        return moving.concurrent and moving.fitting.concurrent(moving.residency, plan)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path | None = DEFAULT_MODEL,
        *,
        device: str = "auto",
        dtype: str = "auto",
        lora: LoraAsked | Sequence[LoraAsked | LoraChoice] = (),
        live_lora: bool = False,
        denoiser: str | Path | None = None,
        encoder: str | Path | None = None,
        vae: str | Path | None = None,
        tokenizer: str | Path | None = None,
        text: PromptEncoder | None = None,
        memory: Amount = None,
        ram: Amount = None,
        quantise: str = "exact",
        request: Asked | None = None,
    ) -> Pipeline:
        """Load a variant by name, any checkpoint's folder, or parts from different places.

        LoRAs are added to the weights of this pipeline alone. With a limit of memory, a placement
        is computed first and then followed; the picture is the same unless `quantise` is asked for.

        Args:
            name_or_path: "mini-turbo", "lens-turbo" …, see `variants.locate`; or a folder, or a
                `petzval.toml`; None where every network is named below.
            device: "cpu", "cuda", "cuda:1", "xpu", "mps"; "auto" takes an accelerator where there
                is one.
            dtype: "float32", "bfloat16" or "float16"; "auto" is float32 on a CPU, elsewhere
                bfloat16 where the device has it.
            lora: a file ("style.safetensors", "style.safetensors:0.8"), a file and its weight, or
                several of these, whose changes are summed.
            live_lora: keep LoRAs beside the weights, so that `set_lora_weights` can change how
                strong they are; they cost some time then, and round differently.
            denoiser, encoder, vae: files or folders of any format that is read, in place of the
                checkpoint's own.
            tokenizer: a folder with `tokenizer.json`, the file, or a file of weights with it
                inside; None takes the one that came with the encoder.
            text: in place of the checkpoint's text encoder, which is not loaded then.
            memory: the device's, as "8GB" or in bytes; on a CPU that of the process.
            ram: this process's, where another device draws.
            quantise: "float8", "int8" or "int4" keeps the denoiser's blocks in fewer bits;
                "auto" does where nothing exact fits into the memory.
            request: for what to plan; left out, a picture of the checkpoint's own size.

        Raises:
            RequestError: unknown model, device or dtype; a LoRA is absent, its weight out of range.
            CheckpointError: the files are missing, damaged or of another shape, also a LoRA's.
            PlacementError: nothing fits into the memory.
        """
        named = Parts.of(denoiser=denoiser, encoder=encoder, vae=vae, tokenizer=tokenizer)
        located = locate(name_or_path, named)
        planning = Planning.open(
            located,
            choose_loras(lora),
            device=device,
            dtype=dtype,
            budget=Budget.of(memory, ram),
            storage=choose_storage(quantise),
            live=live_lora,
            encodes=text is None,
        )
        work = default_work(located.defaults)
        if request is not None:
            work = planning.work(decide(request, located.defaults))
        live = planning.live_loras()  # in their place before the networks, or they had no room
        residency = planning.settle(work)
        identity = planning.checkpoint.identity
        networks = residency.networks
        text = text or PromptEncoder(networks.encoder, planning.tokenizer, checkpoint_id=identity)
        return cls(
            name=located.name,
            identity=identity,
            text=text,
            denoiser=networks.denoiser,
            autoencoder=networks.autoencoder,
            defaults=located.defaults,
            loras=planning.used_loras,
            live=live,
            residency=residency,
            planning=planning,
        )

    def set_lora_weights(self, *weights: int | float) -> None:
        """How strong each LoRA is from now on, in the order in which they were loaded.

        Raises:
            RequestError: the LoRAs are merged or folded, or a weight is missing or out of range.
        """
        if self._live is None or self._folded.dropped:
            why = "merged into the weights" if self._live is None else "folded with them"
            what = f"this pipeline's LoRAs are {why}, and cannot change any more"
            raise RequestError(what, "load it with live_lora=True, and do not fold it")
        self.loras = reweighed(self.loras, weights)
        self._live.set(weights)
        self.moving.graphs.clear()  # strengths are numbers in them
        self._made_by = replace(self._made_by, loras=self.loras)
        self._folded.clear()

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
                Under a limit of memory they are as many as have room.

        Raises:
            RequestError: the request cannot be served.
            PlacementError: it does not fit into the memory; raised before anything is computed.
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
    ) -> Generator[StepEvent]:
        """The same, step by step; stop iterating to stop the work. See `generate`.

        Args:
            noise: [pictures, tokens, channels] in place of the seeds' own; recipes do not remember
                it.
            leave_decoding: the last step's event has no pictures but `finish`, which decodes them
                in whatever thread calls it, while the next ones are drawn in this one.

        Raises:
            RequestError: the request cannot be served, or the noise is of another shape; raised at
                the call, before the first step.
            PlacementError: no plan of memory fits; likewise, or while iterating, where memory ran
                out and no smaller plan has room.
            NumericsError: while iterating: a number stopped being finite.
        """
        plan = self.plan(request, **options)
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, got {batch_size}")
        channels = self.networks.denoiser.config.in_channels
        source = numerics.choose_noise(noise, plan, channels, self.dtype)
        self.moving.fitting.of(self.moving.residency, plan, batch_size)
        return self._run(plan, batch_size, source, leave_decoding)

    def _run(
        self, plan: GenerationPlan, batch_size: int, noise: Noise, leave_decoding: bool
    ) -> Generator[StepEvent]:
        batch_size = self.moving.make_room(plan, batch_size)
        left = plan
        while True:
            try:
                for images in self._words.batches(left, batch_size):
                    yield from self._draw(plan, images, noise, leave_decoding)
                    rest = tuple(each for each in left.images if each not in images)
                    left = replace(left, images=rest)
                    backends.spare_heap()
                return
            except (RuntimeError, MemoryError, OSError) as error:
                if not backends.is_out_of_memory(error):
                    raise
            # Out here the error and the tensors that its traceback held are gone.
            batch_size = self.moving.shrink(plan, batch_size)

    def _draw(
        self,
        plan: GenerationPlan,
        images: Sequence[PlannedImage],
        noise: Noise,
        leave_decoding: bool,
    ) -> Iterator[StepEvent]:
        clock, moving = StageClock(), self.moving
        self._words.encode_first(plan, images, moving.residency)
        levels, modulations = self._folded.of(plan, lambda: self.denoiser)
        graphs = moving.graphs if moving.concurrent else None  # they keep memory of their own
        denoise = self._words.velocity(plan, images, moving.residency, modulations, graphs)
        clock.lap("encode")
        tokens = numerics.noise_of(images, noise).to(self.device)
        state_dtype = self.dtype if plan.parity.state_in_network_dtype else torch.float32
        threads = torch.get_num_threads() if self.device.type == "cpu" else None
        made_by = replace(self._made_by, threads=threads, weights=moving.residency.storage)
        for step in sample(denoise, tokens, levels, plan.solver, state_dtype=state_dtype):
            numerics.check_step(step, images, self.dtype, self.planning)
            clock.lap("denoise")
            event = self._event(plan, images, step)
            if step.index + 1 == step.num_steps:
                finish = partial(self._finishing.finish, plan, images, step.tokens, clock, made_by)
                if leave_decoding and moving.concurrent:
                    event = replace(event, finish=moving.decodings.late(finish, self.device))
                else:  # an autoencoder that comes and goes may only push others out from here
                    event = replace(event, images=finish())
            yield event
            if step.index + 1 < step.num_steps:  # else the clock may be another thread's
                clock.resume()

    def plan(self, request: Asked, **options: Any) -> GenerationPlan:
        """What would be done for a request, without doing it; see `make_plan`.

        Raises:
            RequestError: the request cannot be served; or options on top of a finished plan.
        """
        return decide(request, self.defaults, **options)

    def encode_prompts(self, plan: GenerationPlan) -> None:
        """Encode a plan's words now; drawing it finds their features in the cache."""
        self._words.encode(plan, plan.texts)

    def fold(self, request: Asked, **options: Any) -> int:
        """Compute the modulations of a request's schedule and drop their weights.

        A third of the denoiser's parameters depend on the noise level alone. Afterwards requests
        with the same number of tokens and steps, mu, solver and mode are served, and no others.

        Returns:
            Bytes freed on the device.

        Raises:
            RequestError: the request cannot be served.
        """
        self._folded.of(self.plan(request, **options), lambda: self.denoiser)
        self._folded.dropped = True
        return self.denoiser.drop_modulation()

    def decode(
        self, tokens: LatentTokens, plan: GenerationPlan, *, strip_rows: int | None = None
    ) -> Images:
        """Denoised tokens → pictures, nominally in [-1, 1], not clamped.

        Args:
            strip_rows: of each strip; 0 decodes the picture at once, None follows the placement.
        """
        return self._finishing.decode(tokens, plan, strip_rows)

    def _event(self, plan: GenerationPlan, images: Sequence[PlannedImage], step: Step) -> StepEvent:
        return StepEvent(
            indices=tuple(image.index for image in images),
            step=step.index + 1,
            num_steps=step.num_steps,
            sigma=step.sigma_next,
            images=(),
            preview=self.moving.decodings.preview(
                lambda: self._finishing.pixels(step.data_estimate, plan)
            ),
            # Of a placement all may be put out for another pipeline's while a preview waits.
            any_thread=self.placement is None,
            small_preview=self.moving.previews.of(lambda: step.data_estimate, plan.resolution.grid),
        )


load = Pipeline.load
