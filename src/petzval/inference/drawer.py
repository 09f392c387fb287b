"""Drawers of one device: of checkpoints, loaded, with LoRAs to choose from; or of a pipeline."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from petzval.conditioning.encoder import PromptEncoder
from petzval.errors import PlacementError, RequestError
from petzval.inference.compile import compile_pipeline
from petzval.inference.dry_networks import Work
from petzval.inference.event import StepEvent
from petzval.inference.fitting import Fit
from petzval.inference.moving import follow
from petzval.inference.pipeline import Pipeline
from petzval.inference.plan import GenerationPlan
from petzval.inference.planning import Planning
from petzval.inference.residency import Residency
from petzval.inference.room import Bounds, Room
from petzval.inference.task import NamedLora, OfferedModel
from petzval.inference.terms import Amount, Budget, Terms
from petzval.inference.variants import locate
from petzval.kernels import backends
from petzval.models.compiled import compile_blocks
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import read_lora
from petzval.weights.residence import vacate

_KEPT_COPIES = 2
"""Denoisers with LoRAs in their weights that are kept for each device."""


class CompileWarning(UserWarning):
    """What was to be compiled is not; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    pipeline: Pipeline
    planning: Planning
    loras: Mapping[str, Path]
    room: Room | None


class PipelineDrawer:
    """Draws with checkpoints on one device; a `petzval.inference.engine.Drawer`.

    Args:
        models: names or folders of checkpoints; the first is the default.
        loras: name -> file, offered with the models that they fit.
        device, dtype: as in `Pipeline.load`.
        batch_size: pictures that run through the networks together.
        overlap: decode, and encode the next prompt, in other threads than the denoising. None does
            so on accelerators; on a CPU all threads would share the same cores.
        text: name of a model → its prompt encoder, where the checkpoint's own is not to be loaded.
        compile: compile the networks: every size anew, when a picture of it is first asked for. Of
            a placement under which networks come and go it is left out, with a warning: compiled
            graphs are for weights that stay. Compiling takes RAM that no plan counts.
        memory, ram, quantise: as in `Pipeline.load`, for each model and for each copy of it with
            LoRAs. They draw in turn, and each puts its weights out for the next, so that the limits
            hold for all of them together; what stays while one draws is read again when its turn
            comes.

    Raises:
        RequestError, CheckpointError, PlacementError: as `Pipeline.load`; or a LoRA fits none of
            the models; or this machine cannot compile.
    """

    def __init__(
        self,
        models: Sequence[str | Path],
        *,
        loras: Mapping[str, Path] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 1,
        overlap: bool | None = None,
        text: Callable[[str], PromptEncoder] | None = None,
        compile: bool = False,
        memory: Amount = None,
        ram: Amount = None,
        quantise: str = "exact",
    ) -> None:
        self._compile = compile
        self._loaded: dict[str, _Loaded] = {}
        self._copies: OrderedDict[tuple[str, tuple[NamedLora, ...]], Pipeline] = OrderedDict()
        self._last: Pipeline | None = None
        for model in models:
            self._turn_to(None)
            located = locate(model)
            pipeline = Pipeline.load(
                model,
                device=device,
                dtype=dtype,
                text=None if text is None else text(located.name),
                memory=memory,
                ram=ram,
                quantise=quantise,
            )
            self._turn_to(pipeline)
            assert pipeline.planning is not None
            self._loaded[located.name] = _Loaded(
                pipeline=pipeline,
                planning=pipeline.planning,
                loras=_fitting(pipeline.planning.checkpoint, loras or {}),
                room=Room.of(pipeline),
            )
        for name in loras or {}:
            if not any(name in loaded.loras for loaded in self._loaded.values()):
                raise RequestError(
                    f"the LoRA {name!r} fits none of the models", "serve the model it was made for"
                )
        for name, loaded in self._loaded.items():
            self._turn_to(loaded.pipeline)
            if compile:
                self._keep_compiled(loaded.pipeline)
            loaded.pipeline.moving.leaving = partial(self._forget_copies, name)
            loaded.pipeline.moving.previews.begin()
        self.batch_size = batch_size
        first = next(iter(self._loaded.values())).pipeline
        self.overlap = first.device.type != "cpu" if overlap is None else overlap
        self._ahead: threading.Thread | None = None

    @property
    def models(self) -> tuple[OfferedModel, ...]:
        """See `Drawer.models`."""
        return tuple(
            OfferedModel(name=name, defaults=each.pipeline.defaults, loras=tuple(each.loras))
            for name, each in self._loaded.items()
        )

    def draw(
        self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan
    ) -> Generator[StepEvent]:
        """See `Drawer.draw`."""
        if self._ahead is not None:
            self._ahead.join()  # the encoder belongs to one thread at a time
        left = plan
        while True:
            try:
                with closing(self._steps(model, loras, left)) as events:
                    for event in events:
                        yield event
                        if event.step == event.num_steps:
                            left = _without(left, event.indices)
            except PlacementError:
                base = self._loaded[model].pipeline
                if not loras or base.placement is not None:
                    raise
            else:
                return
            # A copy that shares its base's networks cannot have them move: the base can.
            self._take_turns(model, left)

    def _steps(
        self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan
    ) -> Generator[StepEvent]:
        pipeline = self._pipeline(model, loras, plan)
        yield from pipeline.steps(plan, batch_size=self.batch_size, leave_decoding=self.overlap)

    def warm_up(self) -> None:
        """Draw one step of each model's usual picture, so that the first caller need not wait.

        On an accelerator the first use tries, compiles and chooses kernels; on a CPU nothing does,
        unless the networks are to be compiled.
        """
        for loaded in self._loaded.values():
            pipeline = loaded.pipeline
            if self._compile or pipeline.device.type != "cpu":
                self._turn_to(pipeline)
                pipeline.generate("a red fox", steps=1, seed=0)

    def prepare(self, model: str, plan: GenerationPlan) -> None:
        """See `Drawer.prepare`."""
        pipeline = self._loaded[model].pipeline  # LoRAs leave the encoder as it is
        if not self.overlap or not pipeline.concurrent(plan):
            return  # an encoder that comes and goes would push out what is drawing
        if pipeline.placement is not None and pipeline is not self._last:
            return  # it was put out, for the one that draws has the memory
        self._ahead = threading.Thread(
            target=_encode_ahead, args=(pipeline, plan), name="petzval-encode", daemon=True
        )
        self._ahead.start()

    def check(self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan) -> None:
        """See `Drawer.check`."""
        room = self._loaded[model].room
        if room is not None:
            room.check(plan)

    def bounds(self) -> Mapping[str, Bounds | None]:
        """What each model may use, for those who check elsewhere."""
        return {name: Bounds.of(each.pipeline) for name, each in self._loaded.items()}

    def _turn_to(self, pipeline: Pipeline | None) -> None:
        """Under placements the weights of one are there at a time; None makes room for another.

        So are kept features of words, which are counted for one; copies with LoRAs share theirs.
        """
        last, self._last = self._last, pipeline
        if last is None or last is pipeline:
            return
        last.put_out()
        shared = pipeline is not None and pipeline.text.cache is last.text.cache
        if last.placement is not None and not shared:
            last.text.cache.clear()

    def _keep_compiled(self, pipeline: Pipeline) -> None:
        """Compile what stays, also whenever other networks take its place."""
        pipeline.moving.moved = partial(self._keep_compiled, pipeline)
        if pipeline.placement is None or pipeline.placement.stays:
            compile_pipeline(pipeline)
            return
        warnings.warn(
            f"--compile is left out for {pipeline.name}, whose networks come and go under this "
            f"plan of memory: {pipeline.placement}",
            CompileWarning,
            stacklevel=3,
        )

    def _take_turns(self, model: str, plan: GenerationPlan) -> None:
        """There is no room for a base and a copy beside each other: one is there at a time."""
        base = self._loaded[model].pipeline
        self._turn_to(None)
        base.moving.shrink(plan, self.batch_size)
        base.put_out()

    def _forget_copies(self, model: str | None = None) -> bool:
        """Those that share networks with their base, of this model or of any; False: none did."""
        shared = [key for key, copy in self._copies.items() if copy.planning is None]
        shared = [key for key in shared if model in (None, key[0])]
        for key in shared:
            self._forget(key)
        return bool(shared)

    def _forget(self, key: tuple[str, tuple[NamedLora, ...]]) -> None:
        """One copy; what only it has is gone, whoever still holds a part of it."""
        copy = self._copies.pop(key)
        vacate(copy.networks.denoiser)

    def _pipeline(self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan) -> Pipeline:
        """A checkpoint's pipeline, whose turn it is; with LoRAs a copy with its own denoiser."""
        loaded = self._loaded[model]
        if not loras:
            self._turn_to(loaded.pipeline)
            return loaded.pipeline
        key = (model, loras)
        if key not in self._copies:
            self._turn_to(None)  # or two would be there while this one is loaded
            while len(self._copies) >= _KEPT_COPIES:
                self._forget(next(iter(self._copies)))
            backends.give_back(loaded.pipeline.device)  # parts of a pipeline know the whole
            copy = self._copies[key] = self._copy(model, loras, plan)
            if self._compile and copy.placement is not None:
                self._keep_compiled(copy)
            elif self._compile:  # its own denoiser; the graphs are those of the base's
                compile_blocks(copy.networks.denoiser.transformer_blocks)
        self._turn_to(self._copies[key])
        self._copies.move_to_end(key)
        return self._copies[key]

    def _copy(self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan) -> Pipeline:
        """A new copy; where memory runs out other copies give way, then the base takes turns."""
        loaded = self._loaded[model]
        while True:
            try:
                return _with_loras(loaded, loras, plan)
            except (RuntimeError, MemoryError, OSError) as error:
                shares = loaded.pipeline.placement is None  # else there was a smaller plan, or none
                if not shares or not backends.is_out_of_memory(error):
                    raise
            if self._forget_copies():
                backends.give_back(loaded.pipeline.device)
            else:
                self._take_turns(model, plan)


def _encode_ahead(pipeline: Pipeline, plan: GenerationPlan) -> None:
    """Where memory runs out, words are encoded when their pictures are drawn, with room made."""
    try:
        pipeline.encode_prompts(plan)
    except (RuntimeError, MemoryError, OSError) as error:
        if not backends.is_out_of_memory(error):
            raise


def _without(plan: GenerationPlan, indices: Collection[int]) -> GenerationPlan:
    images = tuple(image for image in plan.images if image.index not in indices)
    return replace(plan, images=images)


class LoadedDrawer:
    """Draws with one pipeline as it is loaded; a `petzval.inference.engine.Drawer`.

    Args:
        pipeline: LoRAs in its weights, limits of memory and compiled networks are its own affair.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @property
    def models(self) -> tuple[OfferedModel, ...]:
        """See `Drawer.models`."""
        return (OfferedModel(name=self._pipeline.name, defaults=self._pipeline.defaults),)

    def draw(
        self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan
    ) -> Generator[StepEvent]:
        """See `Drawer.draw`.

        Raises:
            RequestError: at the call, where the pipeline refuses the plan; or LoRAs are asked for.
        """
        del model  # there is one
        if loras:
            raise RequestError("a loaded model takes no further LoRAs", "load it with them")
        return self._pipeline.steps(plan)

    def check(self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan) -> None:
        """Nothing is refused here: `draw` does so at the call."""

    def prepare(self, model: str, plan: GenerationPlan) -> None:
        """Nothing is encoded ahead: the pipeline encodes a plan's words when it comes to them."""


def _fitting(checkpoint: Checkpoint, loras: Mapping[str, Path]) -> dict[str, Path]:
    fitting: dict[str, Path] = {}
    for name, path in loras.items():
        try:
            read_lora(path, checkpoint.denoiser_config)
        except Exception:
            continue
        fitting[name] = path
    return fitting


def _with_loras(loaded: _Loaded, loras: Sequence[NamedLora], plan: GenerationPlan) -> Pipeline:
    """A copy with a denoiser of its own; where weights come and go, nothing is shared."""
    base, checkpoint = loaded.pipeline, loaded.planning.checkpoint
    config = checkpoint.denoiser_config
    read = [(read_lora(loaded.loras[name], config), weight) for name, weight in loras]
    planning = replace(loaded.planning, loras=read)
    if base.placement is None:
        pipeline = _sharing(base, planning)
        pipeline.moving.decodings = base.moving.decodings  # of one autoencoder, which may move
    else:
        pipeline = _moving(base, planning, planning.work(plan))
    pipeline.moving.previews = base.moving.previews
    return pipeline


def _sharing(base: Pipeline, planning: Planning) -> Pipeline:
    """Encoder and autoencoder are the base's, so no smaller plan may be followed by this one."""
    return Pipeline(
        name=base.name,
        identity=base.identity,
        text=base.text,
        denoiser=planning.checkpoint.load_denoiser(
            base.dtype, base.device, loras=planning.loras, coded=True
        ),
        autoencoder=base.autoencoder,
        defaults=base.defaults,
        loras=planning.used_loras,
    )


def _moving(base: Pipeline, planning: Planning, work: Work) -> Pipeline:
    """The base's placement, if it keeps the limits with LoRAs, followed by networks of its own."""
    assert base.placement is not None
    placement, terms = planning.agreed(base.placement, base.terms or Terms(limits=Budget()))
    loaded: list[Residency] = []
    fit = Fit(batch_size=1, placement=placement, terms=terms)
    follow(planning, work, fit, None, loaded.append)
    [residency] = loaded
    networks = residency.networks
    text = base.text
    if planning.encodes:
        text = PromptEncoder(networks.encoder, planning.tokenizer, checkpoint_id=base.identity)
        text.cache = base.text.cache
    return Pipeline(
        name=base.name,
        identity=base.identity,
        text=text,
        denoiser=networks.denoiser,
        autoencoder=networks.autoencoder,
        defaults=base.defaults,
        loras=planning.used_loras,
        residency=residency,
        planning=planning,
    )
