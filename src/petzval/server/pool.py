"""Drawers on many devices or machines: the same server, its drawing done by Ray Serve's replicas.

The application, its queue and its database stay in one process, which is the one that may answer
for a job; what needs a device is deployed: `Drawing`, a denoiser and a decoder each, and
`Encoding`, text encoders that all of them share. Where replicas run, how many live and which takes
the next picture is Ray's business. A picture whose replica fails or dies is drawn once more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from petzval.conditioning.encoder import (
    DEFAULT_MAX_BATCH,
    FeatureCache,
    PromptEncoder,
    PromptFeatures,
)
from petzval.errors import MissingExtraError, PetzvalError
from petzval.inference.device import choose_device
from petzval.inference.drawer import PipelineDrawer
from petzval.inference.event import Pixels, StepEvent
from petzval.inference.lone_encoder import held_bytes, load_prompt_encoder
from petzval.inference.plan import GenerationPlan
from petzval.inference.planning import Planning
from petzval.inference.request import GeneratedImage
from petzval.inference.room import Bounds, Room
from petzval.inference.task import NamedLora, OfferedModel
from petzval.inference.terms import Budget
from petzval.inference.variants import locate
from petzval.kernels import backends

APPLICATION = "petzval"


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSettings:
    """What the replicas are made of.

    Attributes:
        models, loras, device, dtype, batch_size, compile: as in `PipelineDrawer`.
        memory, ram, quantise: likewise, for each replica, drawing or encoding: several on one card
            share it, so that each has to be given its part.
        threads: of torch in each replica; None leaves the machine's default.
        replicas: that draw.
        encoders: replicas that encode prompts for all; 0 lets each drawer have its own encoder.
        cpus, gpus: of each replica, drawing or encoding; a part of one is shared. A replica for
            which the cluster has no room is waited for.
        address: of a Ray cluster, such as "auto"; None starts one on this machine.
    """

    models: tuple[str, ...]
    loras: Mapping[str, Path] = field(default_factory=dict[str, Path])
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    batch_size: int = 1
    compile: bool = False
    memory: str | None = None
    ram: str | None = None
    quantise: str = "exact"
    replicas: int = 2
    encoders: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SentStep:
    """A `StepEvent` as it travels: values in place of functions."""

    indices: tuple[int, ...]
    step: int
    num_steps: int
    sigma: float
    images: tuple[GeneratedImage, ...]
    preview: Pixels


class Encoding:
    """A replica that encodes prompts, for all drawers."""

    def __init__(self, pool: PoolSettings) -> None:
        _set_threads(pool)
        self._encoders: dict[str, PromptEncoder] = {}
        budget = Budget.of(pool.memory, pool.ram)
        for model in pool.models:
            located = locate(model)
            planning = Planning.open(
                located,
                (),
                device=pool.device,
                dtype=pool.dtype,
                budget=budget,
                storage="exact",
            )
            others = self._encoders.values()
            beside = sum(held_bytes(each, planning.device) for each in others)
            last = model == pool.models[-1]
            self._encoders[located.name] = load_prompt_encoder(planning, beside, last=last)

    def encode(
        self, model: str, prompts: Sequence[str], settings: Mapping[str, Any]
    ) -> list[PromptFeatures]:
        """Features of prompts, on the CPU; see `PromptEncoder.encode`."""
        encoded = self._encoders[model].encode(prompts, **settings)
        backends.spare_heap()
        return [_moved(each, torch.device("cpu")) for each in encoded]


class SharedEncoder(PromptEncoder):
    """A prompt encoder whose language model is in another process: it only asks.

    Args:
        handle: of the `Encoding` deployment.
        model: whose encoder is asked.
        device: where features are wanted.
    """

    def __init__(self, handle: Any, model: str, device: torch.device) -> None:
        self._handle, self._model, self._device = handle, model, device
        self.use_prefix_cache = False  # the other process has its own, and its own limit
        self.max_batch = DEFAULT_MAX_BATCH
        self.cache = FeatureCache(0)  # nothing is kept here

    def encode(self, prompts: Sequence[str], **settings: Any) -> list[PromptFeatures]:
        """See `PromptEncoder.encode`."""
        answer = self._handle.encode.remote(self._model, list(prompts), settings)
        return [_moved(each, self._device) for each in answer.result()]


class Drawing:
    """A replica that draws, one run of the sampler at a time."""

    def __init__(self, pool: PoolSettings, encoding: Any = None) -> None:
        _set_threads(pool)
        device = choose_device(pool.device)

        def shared(model: str) -> PromptEncoder:
            return SharedEncoder(encoding, model, device)

        self._drawer = PipelineDrawer(
            pool.models,
            loras=pool.loras,
            device=pool.device,
            dtype=pool.dtype,
            batch_size=pool.batch_size,
            overlap=False,
            text=None if encoding is None else shared,
            compile=pool.compile,
            memory=pool.memory,
            ram=pool.ram,
            quantise=pool.quantise,
        )
        self._drawer.warm_up()

    def bounds(self) -> Mapping[str, Bounds | None]:
        """See `PipelineDrawer.bounds`."""
        return self._drawer.bounds()

    def models(self) -> tuple[OfferedModel, ...]:
        """What can be drawn with."""
        return self._drawer.models

    async def draw(
        self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan
    ) -> AsyncIterator[SentStep]:
        """Draw a plan, step by step; whoever cancels waits for one step at most."""
        events = self._drawer.draw(model, loras, plan)
        try:
            while (sent := await _finishing(_next, events)) is not None:
                yield sent
        finally:
            events.close()


class PooledDrawer:
    """A `Drawer` whose work is done by whichever replica is free.

    Args:
        handle: of the `Drawing` deployment.
        models: what its replicas draw with.
        rooms: name of a model → what is asked before a picture is accepted; no replica is, for it
            would answer after what it draws.
    """

    def __init__(
        self, handle: Any, models: tuple[OfferedModel, ...], rooms: Mapping[str, Room | None]
    ) -> None:
        self._handle = handle
        self._models = models
        self._rooms = rooms

    @property
    def models(self) -> tuple[OfferedModel, ...]:
        """See `Drawer.models`."""
        return self._models

    def check(self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan) -> None:
        """See `Drawer.check`; what only the replicas' machines know is found out there."""
        room = self._rooms.get(model)
        if room is not None:
            room.check(plan)

    def prepare(self, model: str, plan: GenerationPlan) -> None:
        """Encoders of the pool are not kept busy ahead: another drawer may need them now."""

    def draw(
        self, model: str, loras: tuple[NamedLora, ...], plan: GenerationPlan
    ) -> Generator[StepEvent, None, None]:
        """See `Drawer.draw`."""
        answer = self._handle.options(stream=True).draw.remote(model, loras, plan)
        ended = False
        try:
            for sent in answer:
                yield _received(sent, plan)
            ended = True
        finally:
            if not ended:
                with suppress(Exception):  # the replica may be the very thing that broke
                    answer.cancel()


def start_pool(pool: PoolSettings) -> tuple[PooledDrawer, ...]:
    """Deploy the replicas and give one drawer for each.

    Raises:
        MissingExtraError: Ray Serve is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
        from ray import serve
    except ImportError:
        raise MissingExtraError("ray[serve]", "cluster") from None
    ray.init(address=pool.address, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    library: Any = serve
    options = {"ray_actor_options": {"num_cpus": pool.cpus, "num_gpus": pool.gpus}}
    encoding = None
    if pool.encoders:
        deployed = library.deployment(Encoding).options(num_replicas=pool.encoders, **options)
        encoding = deployed.bind(pool)
    drawing = library.deployment(Drawing).options(
        num_replicas=pool.replicas, max_ongoing_requests=1, **options
    )
    handle = library.run(drawing.bind(pool, encoding), name=APPLICATION, route_prefix=None)
    models = handle.models.remote().result()
    rooms = rooms_of(pool, handle.bounds.remote().result())
    return tuple(PooledDrawer(handle, models, rooms) for _ in range(pool.replicas))


def rooms_of(pool: PoolSettings, bounds: Mapping[str, Bounds | None]) -> Mapping[str, Room | None]:
    """What is asked in this process before a picture is accepted.

    All replicas have the same limits and load the same; so the answer of one stands for all. Of a
    model that is not on this machine nothing is asked: who draws finds out.

    Args:
        pool: whose models.
        bounds: of one replica, by name of the model.
    """
    rooms: dict[str, Room | None] = {}
    for model in pool.models if any(bounds.values()) else ():
        try:
            located = locate(model)
        except PetzvalError:  # its files may be on the replicas' machines alone
            continue
        its = bounds.get(located.name)
        rooms[located.name] = None if its is None else Room.elsewhere(located, its)
    return rooms


def stop_pool() -> None:
    """Take the replicas down, and the cluster where `start_pool` started it."""
    import ray
    from ray import serve

    library: Any = serve
    library.shutdown()
    ray.shutdown()


async def _finishing(function: Any, *arguments: Any) -> Any:
    """Run something in a thread, to its end even when it is cancelled meanwhile."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise


def _next(events: Generator[StepEvent, None, None]) -> SentStep | None:
    event = next(events, None)
    if event is None:
        return None
    look = event.preview if event.small_preview is None else event.small_preview
    return SentStep(
        indices=event.indices,
        step=event.step,
        num_steps=event.num_steps,
        sigma=event.sigma,
        images=event.images,
        preview=look(),
    )


def _received(sent: SentStep, plan: GenerationPlan) -> StepEvent:
    size = plan.resolution.width, plan.resolution.height

    def enlarged() -> Pixels:
        return np.stack([np.asarray(Image.fromarray(each).resize(size)) for each in sent.preview])

    return StepEvent(
        indices=sent.indices,
        step=sent.step,
        num_steps=sent.num_steps,
        sigma=sent.sigma,
        images=sent.images,
        preview=enlarged,
        small_preview=lambda: sent.preview,
    )


def _moved(features: PromptFeatures, device: torch.device) -> PromptFeatures:
    return PromptFeatures(
        layers=tuple(layer.to(device) for layer in features.layers),
        truncated=features.truncated,
        num_dropped=features.num_dropped,
    )


def _set_threads(pool: PoolSettings) -> None:
    if pool.threads is not None:
        torch.set_num_threads(pool.threads)
