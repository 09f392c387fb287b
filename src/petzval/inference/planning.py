"""From a request to networks in their places, and what to do when it was too much.

`Planning` is what a checkpoint is loaded with; the pipeline asks it again when memory runs out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from petzval.conditioning.encoder import DEFAULT_MAX_BATCH
from petzval.conditioning.tokenizer import PromptTokenizer
from petzval.config import to_mapping
from petzval.inference.device import choose_device, choose_dtype
from petzval.inference.dry_networks import Work
from petzval.inference.forms import Reckoned
from petzval.inference.loras import LoraChoice
from petzval.inference.opening import open_checkpoint
from petzval.inference.placement import ENCODER, Placement, StorageChoice
from petzval.inference.plan import GenerationPlan
from petzval.inference.planner import Planner
from petzval.inference.recipe import UsedLora
from petzval.inference.residency import Loras, Residency, parameter_dtype, unloaded_encoder
from petzval.inference.speeds import Speeds, measured_speeds
from petzval.inference.terms import Budget, Terms
from petzval.inference.variants import Defaults, Located
from petzval.kernels import backends
from petzval.resolution import PIXELS_PER_TOKEN
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import changed_layers, read_lora
from petzval.weights.lora_live import LiveLoras, num_elements
from petzval.weights.source import total_bytes

SPARE = 0.92
"""Share of the memory found free that a plan may use where no budget is given."""

_ROOM_FOR_WORK = 1.5
"""A checkpoint is not planned for where this many times its bytes are free on an accelerator."""

_WIDENED = 2
"""How many times its bytes a checkpoint may take in float32."""


class MemoryWarning(UserWarning):
    """Memory ran out, and a smaller plan is followed from here on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planning:
    """A checkpoint, the machine, and what may be used of it.

    Attributes:
        checkpoint: open, not loaded.
        tokenizer: the checkpoint's; counts the tokens of prompts.
        device, dtype: of the denoiser.
        budget: limits; none at all plans for what is free when memory runs out.
        storage: of the denoiser's blocks, or "auto".
        loras: added to the denoiser.
        live: keep them beside its weights.
        encodes: False leaves the text encoder without numbers: somebody else encodes.
        speeds: of the machine; measured where they are not given.
        reckoned: for plans of this checkpoint so far.
    """

    checkpoint: Checkpoint
    tokenizer: PromptTokenizer
    device: torch.device
    dtype: torch.dtype
    budget: Budget = Budget()
    storage: StorageChoice = "exact"
    loras: Loras = ()
    live: bool = False
    encodes: bool = True
    speeds: Speeds | None = None
    reckoned: Reckoned = field(default_factory=Reckoned, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        located: Located,
        loras: Sequence[LoraChoice],
        *,
        device: str,
        dtype: str,
        budget: Budget,
        storage: StorageChoice,
        live: bool = False,
        encodes: bool = True,
        speeds: Speeds | None = None,
        absent: bool = False,
    ) -> Planning:
        """Open what was located for a device and a type by name; nothing is loaded but LoRAs.

        Args:
            absent: the device may be one that is not on this machine, to plan for and no more.

        Raises:
            RequestError: unknown device or dtype.
            CheckpointError: the files are missing, damaged or of another shape, also a LoRA's.
        """
        place = choose_device(device, absent=absent)
        number = choose_dtype(dtype, place)
        checkpoint = open_checkpoint(located)
        config = checkpoint.denoiser_config
        return cls(
            checkpoint=checkpoint,
            tokenizer=PromptTokenizer(checkpoint.tokenizer),
            device=place,
            dtype=number,
            budget=budget,
            storage=storage,
            loras=[(read_lora(choice.path, config), choice.weight) for choice in loras],
            live=live,
            encodes=encodes,
            speeds=speeds,
        )

    @property
    def used_loras(self) -> tuple[UsedLora, ...]:
        """For recipes."""
        return tuple(
            UsedLora(file=lora.name, sha256=lora.sha256, weight=weight)
            for lora, weight in self.loras
        )

    @property
    def merged(self) -> Loras:
        """Those that go into the weights."""
        return () if self.live else self.loras

    def live_loras(self) -> LiveLoras | None:
        """Those that stay beside them, in place, not attached yet; None where all are merged."""
        if not self.live:
            return None
        live = LiveLoras([lora for lora, _ in self.loras], [weight for _, weight in self.loras])
        live.place(self.device, parameter_dtype(self.dtype))
        return live

    def planner(self, work: Work, baseline: int | None = None) -> Planner:
        """All placements for pictures that ask for this; see `Planner`."""
        return Planner(
            self.checkpoint,
            self.device,
            self.dtype,
            work,
            self.speeds or measured_speeds(self.device, self.dtype, self._files()),
            storage=self.storage,
            beside=num_elements([lora for lora, _ in self.loras]) if self.live else 0,
            changed=changed_layers(self.merged),
            baseline=baseline,
            encodes=self.encodes,
            reckoned=self.reckoned,
        )

    def settle(self, work: Work) -> Residency:
        """The networks, loaded: all of them for good where nothing speaks against it.

        Raises:
            PlacementError: nothing fits into the budget.
            CheckpointError: a tensor cannot be read any more.
        """
        budget = self.limits() if self.budget else self._room()
        plain = self.storage in ("exact", "auto") and self.dtype != torch.float16
        if plain and not budget:
            loaded = self._unless_memory_ends(self._load_everything)
            if loaded is not None:
                return loaded
            budget = self.limits()
        planner = self.planner(work)
        placement = planner.choose(budget)
        while True:
            terms = Terms.of(budget, placement, work)
            loaded = self._unless_memory_ends(partial(self.follow, placement, terms))
            if loaded is not None:
                return loaded
            placement = planner.smaller(placement, self._limits_now())

    def _load_everything(self) -> Residency:
        checkpoint, device = self.checkpoint, self.device
        if device.type == "cpu":
            backends.keep_heap(True)
        return Residency.of(
            encoder=checkpoint.load_encoder(self.dtype, device)
            if self.encodes
            else unloaded_encoder(checkpoint),
            denoiser=checkpoint.load_denoiser(self.dtype, device, loras=self.merged, coded=True),
            autoencoder=checkpoint.load_vae(self.dtype, device),
        )

    def _unless_memory_ends(self, load: Callable[[], Residency]) -> Residency | None:
        """What was loaded, or None with all of it given back."""
        try:
            return load()
        except (RuntimeError, MemoryError, OSError) as error:
            if not backends.is_out_of_memory(error):
                raise
        backends.give_back(self.device)
        return None

    def follow(self, placement: Placement, terms: Terms | None = None) -> Residency:
        """The networks in their places, what is resident loaded.

        Args:
            placement: of this checkpoint.
            terms: on which it was chosen; None takes the budget.

        Raises:
            CheckpointError: a tensor cannot be read any more.
        """
        terms = terms or Terms(limits=self.budget)
        away = () if self.encodes else (ENCODER,)
        return Residency.follow(self.checkpoint, placement, self.merged, terms, away=away)

    def agreed(self, placement: Placement, terms: Terms) -> tuple[Placement, Terms]:
        """What was agreed on for the same checkpoint with other LoRAs, reckoned for these.

        Layers that LoRAs are merged into cannot stay in their file's codes: where that is too much,
        another placement takes its place.

        Args:
            placement: in force without these LoRAs.
            terms: its own.

        Raises:
            PlacementError: nothing fits.
        """
        if not terms.limits or not terms.works:
            return placement, terms
        work = terms.works[-1]
        planner = self.planner(work, placement.baseline_bytes)
        again = planner.again(placement)
        if not terms.limits.holds(again):
            again = planner.choose(terms.limits)
        return again, Terms.of(terms.limits, again, work)

    def smaller(self, work: Work, than: Placement | None, failed: Work | None = None) -> Placement:
        """What to try after memory ran out under `than`, everything released.

        Args:
            work: of the pictures that are to fit.
            than: None where all networks were there for good.
            failed: of those that were too large; None where they are the same.

        Raises:
            PlacementError: there is nothing smaller.
        """
        planner = self.planner(work)
        if than is not None:
            before = planner if failed is None or failed == work else self.planner(failed)
            return planner.smaller(before.again(than), self._limits_now())
        return planner.choose(self.limits())

    def restored(self) -> Residency:
        """What was there for good before it was released for a smaller plan, which there is not.

        Where it has no room any more: a plan under which nothing is there but while it is used.
        """
        loaded = self._unless_memory_ends(self._load_everything)
        return self.least() if loaded is None else loaded

    def least(self) -> Residency:
        """A plan under which nothing is there but while it is used: nothing is loaded here."""
        every = self.planner(Work(grid=(16, 16), calls=1, branches=1)).placements
        least = min(every, key=lambda each: (each.peak_bytes, each.ram_bytes))
        return self.follow(least, Terms(limits=Budget()))

    def work(
        self, plan: GenerationPlan, *, text_tokens: int | None = None, batch_size: int = 1
    ) -> Work:
        """What the pictures of a plan ask of the networks.

        Args:
            plan: its longest prompt counts.
            text_tokens: of every prompt, in place of its own.
            batch_size: pictures that run through the networks together, if there are as many.
        """
        return work_of(plan, self.tokenizer, batch_size, text_tokens=text_tokens)

    def limits(self) -> Budget:
        """The budget; what it leaves open is what is free at present, if that can be known."""
        if not backends.present(self.device):
            return self.budget
        ram = _share_of_ram()
        if self.device.type == "cpu":
            return self.budget or Budget(memory=ram)
        free, whole = backends.memory_info(self.device)
        memory = int(SPARE * free) if whole else None
        given = self.budget
        return Budget(
            memory=memory if given.memory is None else given.memory,
            ram=ram if given.ram is None else given.ram,
        )

    def _limits_now(self) -> Budget:
        """The same after memory ran out: others may hold what a limit of one's own promised."""
        given, free = self.limits(), replace(self, budget=Budget()).limits()

        def less(first: int | None, second: int | None) -> int | None:
            known = [each for each in (first, second) if each is not None]
            return min(known, default=None)

        return Budget(memory=less(given.memory, free.memory), ram=less(given.ram, free.ram))

    def _room(self) -> Budget:
        """A budget of what is free, where everything at once may not fit; else none.

        A CPU's system ends a process that takes too much and raises nothing: there the question is
        whether the weights fit in the type that they are computed in.
        """
        free, whole = backends.memory_info(self.device)
        parts = (self.checkpoint.denoiser_source, self.checkpoint.encoder_source)
        needed = sum(total_bytes(source) for source in parts)
        if self.device.type != "cpu":
            needed *= _ROOM_FOR_WORK
        elif parameter_dtype(self.dtype) == torch.float32:
            needed *= _WIDENED
        return self.limits() if whole > 0 and free < needed else Budget()

    def _files(self) -> tuple[Path, ...]:
        sources = (self.checkpoint.denoiser_source, self.checkpoint.encoder_source)
        return tuple(file for source in sources for file in source.files)


def _share_of_ram() -> int | None:
    """What this process may hold in all: what it holds, and most of what is free."""
    free, whole = backends.memory_info(torch.device("cpu"))
    return int(SPARE * free) + backends.resident_bytes() if whole else None


def work_of(
    plan: GenerationPlan,
    tokenizer: PromptTokenizer,
    batch_size: int = 1,
    *,
    text_tokens: int | None = None,
) -> Work:
    """What the pictures of a plan ask of the networks; the longest prompt counts.

    Args:
        text_tokens: see `Planning.work`.
    """
    lengths = [
        text_tokens
        or len(
            tokenizer.encode(
                text,
                date=plan.template_date,
                truncate=plan.truncate,
                markers=plan.markers,
                max_tokens=plan.max_tokens,
            ).text_ids
        )
        for text in plan.texts
        if text
    ]
    guided = plan.guidance != 1.0
    texts = [{image.prompt, image.negative_prompt if guided else ""} for image in plan.images]
    calls = plan.steps if plan.solver == "euler" else 2 * plan.steps - 1
    alike = max(Counter(lengths).values(), default=1)
    return Work(
        grid=plan.resolution.grid,
        calls=calls,
        branches=2 if guided else 1,
        text_tokens=max(lengths, default=1),
        texts=max(1, *(len(each - {""}) for each in texts)),
        batch=min(batch_size, len(plan.images)),
        text_batch=min(alike, DEFAULT_MAX_BATCH),
        all_texts=max(1, len(lengths)),
    )


def default_work(defaults: Defaults) -> Work:
    """A square picture of the checkpoint's own size, steps and guidance."""
    side = defaults.base // PIXELS_PER_TOKEN
    branches = 1 if defaults.guidance == 1.0 else 2
    return Work(grid=(side, side), calls=defaults.steps, branches=branches)


def as_json(placement: Placement) -> Mapping[str, object]:
    """A placement as JSON values, its sums included."""
    sums = {
        "exact": placement.exact,
        "peak_bytes": placement.peak_bytes,
        "ram_bytes": placement.ram_bytes,
        "seconds": placement.seconds,
        "further_seconds": placement.further_seconds,
        "other_seconds": placement.other_seconds,
    }
    return to_mapping(placement) | sums
