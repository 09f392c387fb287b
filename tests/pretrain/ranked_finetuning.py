"""Fine-tuning as the ranks of a test run it; `tests/training/launch.py` says how they are started.

`job.json` in the test's folder names the model and the pictures. A leg has one program, since each
of them meets the other ranks anew.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from petzval.pretrain.finetune import FinetuneConfig, finetune
from petzval.pretrain.layout import denoiser_layout
from petzval.training.ema import Ema
from petzval.training.lora import LoraAdapter, LoraConfig
from petzval.training.objective import Objective
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.parallel import ParallelConfig, full_tensor, parallelize
from petzval.training.ranks import Ranks, join_ranks, launched_first
from petzval.training.state import RunState
from petzval.training.step import training_step
from tests.training.denoising import AllRanks, DenoisingObjective, denoiser
from tests.training.ranked import main

LORA = FinetuneConfig(
    num_steps=5,
    batch_size=3,
    base=128,
    learning_rate=3e-3,
    text_dropout=0.6,
    lora=LoraConfig(rank=4, alpha=8.0, dropout=0.2),
    preview_steps=1,
    preview_guidance=1.0,
)
"""Three pictures a step over two ranks; in the third step none of them has its text."""

# AdamW makes a whole step of the rounding where a gradient is nearly zero, so steps are not large.
FULL = dataclasses.replace(LORA, full=True, learning_rate=2e-4)


def tune(folder: Path, name: str, config: FinetuneConfig, *, stop_after: int | None = None) -> bool:
    """A run in `folder/name`, stopped by a signal to the first process; whether it was stopped."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))

    def report(line: str) -> None:
        print(line, flush=True)
        if stop_after is not None and line.startswith(f"step {stop_after} "):
            signal.raise_signal(signal.SIGINT)

    keys = () if config.full else job["keys"]
    outcome = finetune(
        job["model"], Path(job["pictures"]), folder / name, config, keys=keys, report=report
    )
    assert outcome.interrupted or bool(outcome.files) == launched_first()
    return outcome.interrupted


def lora(folder: Path) -> None:
    """From beginning to end."""
    assert not tune(folder, "lora", LORA)


def full(folder: Path) -> None:
    """All weights, from beginning to end."""
    assert not tune(folder, "full", FULL)


def first_half(folder: Path) -> None:
    """Stopped after the second step; the test goes on alone."""
    assert tune(folder, "reduced", LORA, stop_after=2)


def second_half(folder: Path) -> None:
    """Goes on with what one process has left."""
    assert not tune(folder, "extended", LORA)


def frozen_bfloat16(folder: Path) -> None:
    """A LoRA in float32 beside frozen weights in bfloat16, as on a GPU."""
    with join_ranks(torch.device("cpu"), timeout_minutes=3.0) as (ranks, _):
        losses, adapter = bfloat16_steps(ranks)
        ups = [full_tensor(up) for _, up in adapter.halves().values()]
        if ranks.is_first:
            told = {"losses": losses, "moved": all(bool(up.abs().max() > 0) for up in ups)}
            (folder / "frozen_bfloat16.json").write_text(json.dumps(told), encoding="utf-8")


def bfloat16_steps(ranks: Ranks) -> tuple[list[float], LoraAdapter]:
    """Three steps of image layers' halves on these ranks, or on all of two ranks' batches."""
    model = denoiser().to(torch.bfloat16)
    targets = ("transformer_blocks.*.attn.img_qkv", "transformer_blocks.*.img_mlp.w[123]")
    adapter = LoraAdapter(model, LoraConfig(rank=2, alpha=2.0, targets=targets))
    root = parallelize(model, ParallelConfig(), ranks, denoiser_layout(model.config))
    state = RunState(
        model=adapter,
        optimizers=build_optimizers(adapter, OptimizerConfig(learning_rate=0.02, warmup_steps=0)),
        ema=Ema(adapter, 0.5),
        ranks=ranks,
        root=root,
    )
    own = DenoisingObjective(model, ranks.rank, 2)
    objective = cast("Objective[Any]", own if ranks.size == 2 else AllRanks(model, 2))
    reports = [
        training_step(
            objective, objective.batch(0), state, max_grad_norm=1.0, autocast=torch.bfloat16
        )
        for _ in range(3)
    ]
    return [report.loss for report in reports], adapter


PROGRAMS: dict[str, Callable[[Path], None]] = {
    program.__name__: program for program in (lora, full, first_half, second_half, frozen_bfloat16)
}


def run(folder: Path, names: list[str]) -> None:
    """One rank."""
    torch.set_num_threads(1)
    for name in names:
        PROGRAMS[name](folder)


if __name__ == "__main__":
    main(run)
