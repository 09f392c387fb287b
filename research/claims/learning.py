"""One arm and one seed: the product's flow-matching objective and loop on the miniature world."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petzval.conditioning.template import SUFFIX_LENGTH
from petzval.data.miniature.captions import CaptionKind, caption
from petzval.data.miniature.world import (
    Canvas,
    Scene,
    all_scenes,
    draw_all,
    to_tokens,
)
from petzval.models.mmdit import MMDiT
from petzval.pretrain.denoiser import DenoiserBatch, DenoiserConfig, DenoiserObjective
from petzval.training.ema import Ema
from petzval.training.loop import LoopConfig, train
from petzval.training.objective import Loss
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.state import RunState
from research.claims.arms import Arm, Protocol
from research.claims.text import Features


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Scenes by their number of things: what is trained on, and what prompts are made of."""

    trained: tuple[tuple[Scene, ...], ...]
    held_out: tuple[tuple[Scene, ...], ...]

    @classmethod
    def of(cls, protocol: Protocol) -> Split:
        """The same for all arms and seeds."""
        rng = np.random.default_rng(0)
        trained: list[tuple[Scene, ...]] = []
        held_out: list[tuple[Scene, ...]] = []
        for count in range(1, protocol.max_things + 1):
            scenes = all_scenes(count)
            mixed = [scenes[int(number)] for number in rng.permutation(len(scenes))]
            cut = len(mixed) // protocol.held_out
            held_out.append(tuple(mixed[:cut]))
            trained.append(tuple(mixed[cut:]))
        return cls(trained=tuple(trained), held_out=tuple(held_out))


class MiniaturePool:
    """Pictures without end, as the objective draws them: a `petzval.pretrain.pool.Pool`."""

    def __init__(
        self, scenes: tuple[tuple[Scene, ...], ...], canvases: tuple[Canvas, ...], kind: CaptionKind
    ) -> None:
        self.scenes, self.canvases = scenes, canvases
        self.kind: CaptionKind = kind

    def draw_bucket(self, step: int, base: int, rng: np.random.Generator) -> tuple[int, int]:
        """The grid of one of the canvases, all alike often."""
        del step, base
        return self.canvases[int(rng.integers(len(self.canvases)))].grid

    def draw(
        self, step: int, grid: tuple[int, int], count: int, rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, str]]:
        """Tokens and a caption of `count` scenes; every number of things alike often."""
        del step
        groups = [self.scenes[int(rng.integers(len(self.scenes)))] for _ in range(count)]
        scenes = [group[int(rng.integers(len(group)))] for group in groups]
        pictures, _ = draw_all(scenes, Canvas.of_grid(grid), rng)
        for scene, tokens in zip(scenes, to_tokens(pictures), strict=True):
            yield tokens, caption(scene, self.kind, rng).text


class RememberedText:
    """The product's objective, with features that are looked up and not computed."""

    def __init__(self, inner: DenoiserObjective, features: Features, layers: tuple[int, ...]):
        self.inner, self.features, self.layers = inner, features, layers

    def batch(self, step: int) -> DenoiserBatch:
        """As the product's, without the suffix behind each prompt."""
        batch = self.inner.batch(step)
        lengths = (batch.mask.sum(1) - SUFFIX_LENGTH).clamp_min(0)
        width = int(lengths.max())
        mask = torch.arange(width) < lengths[:, None]
        return dataclasses.replace(batch, ids=batch.ids[:, :width], mask=mask)

    def prepare(self, batch: DenoiserBatch) -> DenoiserBatch:
        """The batch with its features."""
        lengths = batch.mask.sum(1).tolist()
        rows = [tuple(ids[:n]) for ids, n in zip(batch.ids.tolist(), lengths, strict=True)]
        return dataclasses.replace(batch, features=tuple(self.features.of_rows(rows, self.layers)))

    def loss(self, batch: DenoiserBatch) -> Loss:
        """The product's."""
        return self.inner.loss(batch)


def _optimizer(protocol: Protocol) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=protocol.learning_rate,
        warmup_steps=protocol.warmup_steps,
        decay="cooldown",
        cooldown=protocol.cooldown,
    )


def begin(arm: Arm, protocol: Protocol, seed: int, features: Features) -> RunState:
    """A fresh denoiser with its optimizer and average."""
    torch.manual_seed(seed)
    model = MMDiT(protocol.denoiser(arm, features.width))
    model.initialise()
    return RunState(
        model=model,
        optimizers=build_optimizers(model, _optimizer(protocol)),
        ema=Ema(model, protocol.ema_decay),
    )


def learn(
    arm: Arm, protocol: Protocol, seed: int, split: Split, features: Features, folder: Path
) -> RunState:
    """Train, or go on; checkpoints that stay lie at equal distances in `folder`."""
    state = begin(arm, protocol, seed, features)
    config = DenoiserConfig(
        batch_tokens=protocol.batch_tokens,
        text_dropout=protocol.text_dropout,
        text_multiple=1,
        seed=seed,
    )
    assert isinstance(state.model, MMDiT)
    pool = MiniaturePool(split.trained, arm.canvases, arm.captions)
    inner = DenoiserObjective(state.model, features.encoder, features.tokenizer, pool, config)
    loop = LoopConfig(
        optimizer=_optimizer(protocol),
        num_steps=protocol.num_steps,
        milestone_steps=protocol.num_steps // protocol.checkpoints,
        ema_decay=protocol.ema_decay,
        callback_minutes=1e9,
        log_every=50,
    )
    train(RememberedText(inner, features, arm.layers), state, loop, folder)
    return state
