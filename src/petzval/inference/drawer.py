"""The drawer of one device: checkpoints that are loaded, and their copies with LoRAs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from petzval.conditioning.encoder import PromptEncoder
from petzval.errors import RequestError
from petzval.inference.event import StepEvent
from petzval.inference.pipeline import Pipeline
from petzval.inference.plan import GenerationPlan
from petzval.inference.recipe import UsedLora
from petzval.inference.task import NamedLora, OfferedModel
from petzval.inference.variants import locate
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora import read_lora

_KEPT_COPIES = 2
"""Denoisers with LoRAs in their weights that are kept for each device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    pipeline: Pipeline
    checkpoint: Checkpoint
    loras: Mapping[str, Path]


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

    Raises:
        RequestError, CheckpointError: as `Pipeline.load`; or a LoRA fits none of the models.
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
    ) -> None:
        self._loaded: dict[str, _Loaded] = {}
        for model in models:
            located = locate(model)
            checkpoint = Checkpoint.open(located.folder)
            self._loaded[located.name] = _Loaded(
                pipeline=Pipeline.load(
                    model,
                    device=device,
                    dtype=dtype,
                    text=None if text is None else text(located.name),
                ),
                checkpoint=checkpoint,
                loras=_fitting(checkpoint, loras or {}),
            )
        for name in loras or {}:
            if not any(name in loaded.loras for loaded in self._loaded.values()):
                raise RequestError(
                    f"the LoRA {name!r} fits none of the models", "serve the model it was made for"
                )
        for loaded in self._loaded.values():
            loaded.pipeline.previews.begin()
        self.batch_size = batch_size
        first = next(iter(self._loaded.values())).pipeline
        self.overlap = first.device.type != "cpu" if overlap is None else overlap
        self._copies: OrderedDict[tuple[str, tuple[NamedLora, ...]], Pipeline] = OrderedDict()
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
    ) -> Generator[StepEvent, None, None]:
        """See `Drawer.draw`."""
        if self._ahead is not None:
            self._ahead.join()  # the encoder belongs to one thread at a time
        pipeline = self._pipeline(model, loras)
        yield from pipeline.steps(plan, batch_size=self.batch_size, leave_decoding=self.overlap)

    def prepare(self, model: str, plan: GenerationPlan) -> None:
        """See `Drawer.prepare`."""
        if not self.overlap:
            return
        pipeline = self._pipeline(model, ())  # LoRAs leave the encoder as it is
        self._ahead = threading.Thread(
            target=pipeline.encode_prompts, args=(plan,), name="petzval-encode", daemon=True
        )
        self._ahead.start()

    def _pipeline(self, model: str, loras: tuple[NamedLora, ...]) -> Pipeline:
        """A checkpoint's pipeline; with LoRAs a copy that has a denoiser of its own."""
        loaded = self._loaded[model]
        if not loras:
            return loaded.pipeline
        key = (model, loras)
        if key not in self._copies:
            while len(self._copies) >= _KEPT_COPIES:
                self._copies.popitem(last=False)
            self._copies[key] = _with_loras(loaded, loras)
        self._copies.move_to_end(key)
        return self._copies[key]


def _fitting(checkpoint: Checkpoint, loras: Mapping[str, Path]) -> dict[str, Path]:
    fitting: dict[str, Path] = {}
    for name, path in loras.items():
        try:
            read_lora(path, checkpoint.denoiser_config)
        except Exception:
            continue
        fitting[name] = path
    return fitting


def _with_loras(loaded: _Loaded, loras: Sequence[NamedLora]) -> Pipeline:
    base, config = loaded.pipeline, loaded.checkpoint.denoiser_config
    read = [(read_lora(loaded.loras[name], config), weight) for name, weight in loras]
    pipeline = Pipeline(
        name=base.name,
        identity=base.identity,
        text=base.text,
        denoiser=loaded.checkpoint.load_denoiser(base.dtype, base.device, loras=read),
        autoencoder=base.autoencoder,
        defaults=base.defaults,
        loras=[
            UsedLora(file=each.name, sha256=each.sha256, weight=weight) for each, weight in read
        ],
    )
    pipeline.previews = base.previews
    return pipeline
