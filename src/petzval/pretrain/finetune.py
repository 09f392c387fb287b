"""Fine-tuning: any checkpoint, a folder of captioned pictures → a LoRA, or a changed checkpoint.

The objective is that of pre-training, the loop that of every stage. A run's folder:

    out/
        recipe.json  metrics.jsonl  checkpoints/  grids/   as every run has them
        latents/                                           each picture, encoded once
        lora/                                              the result, in PEFT's form
        lora-comfyui.safetensors  lora-kohya.safetensors   … in other programs' keys, if asked for
        checkpoint/                                        or, with `full`, a whole checkpoint
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from petzval.config import to_mapping
from petzval.errors import ConfigError, TrainingError
from petzval.inference.variants import locate
from petzval.models.mmdit import MMDiT
from petzval.pretrain.captioned_folder import describe, read_folder
from petzval.pretrain.card import machine
from petzval.pretrain.claim import claim, describe_run
from petzval.pretrain.finetune_config import FinetuneConfig
from petzval.pretrain.finetune_results import write_results
from petzval.pretrain.finetune_run import FinetuneRun, Report, build_run
from petzval.training.loop import train
from petzval.training.lora import chosen_layers
from petzval.training.ranks import Ranks, join_ranks, launched_first, launched_size
from petzval.weights.checkpoint import Checkpoint
from petzval.weights.lora_keys import PREFIXES, Family

__all__ = ["FinetuneConfig", "FinetuneOutcome", "families", "finetune"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOutcome:
    """How a session ended.

    Attributes:
        interrupted: True if a signal stopped it; the same call goes on.
        files: the results, in the order they were written; none if interrupted.
    """

    interrupted: bool
    files: tuple[Path, ...]


def finetune(
    model: str | Path,
    folder: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    keys: Sequence[Family] = (),
    resume: bool = True,
    device: str = "cpu",
    report: Report = print,
) -> FinetuneOutcome:
    """Fine-tune a checkpoint on a folder of pictures, or go on with it.

    Under torchrun the processes share each step's pictures and what is trained; the result is that
    of one process, up to rounding, and a run may go on with another number of them.

    Args:
        model: name of a variant, or a checkpoint folder.
        folder: pictures, each with its caption in a `.txt` beside it.
        out: of the run; its pictures, model and settings must be the same when it goes on.
        config: see there.
        keys: further forms of the LoRA: "comfyui", "kohya", "diffusers".
        resume: False begins anew.
        device: "cpu", or "cuda" for one GPU, and under torchrun for one GPU a process.
        report: receives lines of progress, on the first process.

    Raises:
        DataError: a picture or caption cannot be used.
        TrainingError: `out` holds something else, or there are more processes than pictures a step.
        RequestError, CheckpointError, ConfigError: the model or a setting cannot be used.
    """
    if keys and config.full:
        raise TrainingError("keys are those of a LoRA, but all weights are trained", "leave them")
    if launched_size() > config.batch_size:
        raise TrainingError(
            f"{launched_size()} processes cannot share steps of {config.batch_size} pictures",
            f"raise the batch size to {launched_size()}, or start fewer processes",
        )
    if not launched_first():
        report = _silent
    place = torch.device(device)
    loop = config.loop("bfloat16" if place.type == "cuda" else "none")
    pictures = read_folder(folder, trigger=config.trigger)
    located = locate(model)
    base = config.base or located.defaults.base
    checkpoint = Checkpoint.open(located.folder)
    if not config.full:
        _check_targets(checkpoint, config)
    report(describe(pictures, base))
    record = describe_run(
        located.name, checkpoint.identity, pictures, to_mapping(config), machine=machine()
    )
    # A mistake is found before the processes meet: none of them then waits for another.
    if launched_first():
        claim(out, record, resume=resume)
    with join_ranks(place, timeout_minutes=loop.parallel.timeout_minutes) as (ranks, place):
        _check_same(record, ranks)
        run = build_run(located, checkpoint, pictures, base, out, config, place, ranks, report)
        report(run.summary)
        run.draw_before()
        outcome = train(
            run.objective,
            run.state,
            loop,
            out,
            callbacks=[run.preview],
            resume=resume,
            report=report,
        )
        if outcome.reason == "interrupted":
            return FinetuneOutcome(interrupted=True, files=())
        return FinetuneOutcome(interrupted=False, files=tuple(_result(run, out, keys)))


def _result(run: FinetuneRun, out: Path, keys: Sequence[Family]) -> list[Path]:
    """Of the averages."""
    assert run.state.ema is not None
    with run.state.ema.applied_to(run.state.model):
        return write_results(run, out, keys)


def _check_targets(checkpoint: Checkpoint, config: FinetuneConfig) -> None:
    """Refuse patterns of layers that the denoiser does not have, before anything is written."""
    with torch.device("meta"):
        chosen_layers(MMDiT(checkpoint.denoiser_config), config.lora.targets)


def _check_same(record: Mapping[str, Any], ranks: Ranks) -> None:
    """Processes on several machines must find the same pictures, captions and weights."""
    parts = [record["checkpoint"], record["pictures"], record["settings"]]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    if len(set(ranks.gather(digest))) > 1:
        raise TrainingError(
            "the processes of the run see different pictures, captions, weights or settings",
            "give all machines the same folders and the same command",
        )


def _silent(line: str) -> None:
    """The first process speaks for all."""


def families(names: Sequence[str]) -> list[Family]:
    """Families of keys by name.

    Raises:
        ConfigError: unknown.
    """
    for name in names:
        if name not in PREFIXES:
            raise ConfigError(f"unknown keys {name[:40]!r}", f"known are {', '.join(PREFIXES)}")
    return [cast("Family", name) for name in names]
