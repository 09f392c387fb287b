"""One call of `run`: what was asked for beside the recipe, and which processes take part."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from petzval.config import to_mapping
from petzval.pretrain.denoiser import DenoiserConfig
from petzval.pretrain.language_model import LanguageModelConfig
from petzval.pretrain.vae import AutoencoderObjectiveConfig
from petzval.training.ema import Ema
from petzval.training.loop import LoopConfig
from petzval.training.optimizer import build_optimizers
from petzval.training.parallel import Compile, Layout, parallelize
from petzval.training.ranks import Ranks
from petzval.training.state import RunState

Report = Callable[[str], None]
SettingsT = TypeVar("SettingsT", AutoencoderObjectiveConfig, LanguageModelConfig, DenoiserConfig)
_RANK_SEEDS = 7919


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """What one call of `run` was asked for, and what it gives to each training of the recipe."""

    minutes: float | None
    resume: bool
    num_workers: int | None
    report: Report
    ranks: Ranks
    config_hash: str
    compile: Compile | None = None

    def apply(self, loop: LoopConfig, share: float = 1.0) -> LoopConfig:
        """A recipe's loop with what was asked for in its place."""
        if self.compile is not None:
            parallel = dataclasses.replace(loop.parallel, compile=self.compile)
            loop = dataclasses.replace(loop, parallel=parallel)
        changes: dict[str, float | int] = {}
        if self.minutes is not None:
            changes["minutes"] = self.minutes * share
        if self.num_workers is not None:
            changes["num_workers"] = self.num_workers
        return dataclasses.replace(loop, **changes)

    def own(self, settings: SettingsT) -> SettingsT:
        """An objective's settings with this rank's seed."""
        if self.ranks.is_first:
            return settings
        seed = settings.seed + _RANK_SEEDS * self.ranks.rank
        return dataclasses.replace(settings, seed=seed)

    def state(
        self, model: torch.nn.Module, loop: LoopConfig, layout: Layout | None = None
    ) -> RunState:
        """Everything about a model that is to be trained, over all ranks."""
        root = parallelize(model, loop.parallel, self.ranks, layout)
        return RunState(
            model=model,
            optimizers=build_optimizers(model, loop.optimizer),
            ema=Ema(model, loop.ema_decay),
            config_hash=self.config_hash,
            ranks=self.ranks,
            root=root,
        )


def hash_of(recipe: object) -> str:
    """Of all settings, to tell whether a run goes on as it began."""
    text = json.dumps(to_mapping(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record(run_folder: Path, name: str, recipe: Mapping[str, object]) -> None:
    """The resolved recipe beside what it makes."""
    text = json.dumps({"recipe": name, "torch": torch.__version__, **recipe}, indent=1)
    (run_folder / "recipe.json").write_text(text, encoding="utf-8")
