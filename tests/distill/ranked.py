"""Two processes that distil together: `python -m tests.distill.ranked KIND TEACHER LATENTS OUT`.

Both draw what one process would draw, so that all of them must come to the same weights.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from petzval.distill import build
from petzval.distill.guidance import GuidanceObjective
from petzval.distill.objective import DistillationObjective
from petzval.distill.recipes import GuidanceRecipe, TurboRecipe, smoke_guided, smoke_turbo
from petzval.distill.run import distill
from petzval.pretrain.session import Session, SettingsT
from petzval.training.loop import LoopConfig
from petzval.training.parallel import ParallelConfig


def turbo(num_steps: int) -> TurboRecipe:
    """The smoke recipe with recomputed blocks and every term at work."""
    smoke = smoke_turbo()
    objective = dataclasses.replace(smoke.objective, adversarial_weight=0.1, critic_updates=1)
    return dataclasses.replace(smoke, loop=_loop(smoke.loop, num_steps), objective=objective)


def guided(num_steps: int) -> GuidanceRecipe:
    """The smoke recipe with recomputed blocks."""
    smoke = smoke_guided()
    return dataclasses.replace(smoke, loop=_loop(smoke.loop, num_steps))


RECIPES: Mapping[str, Callable[[int], TurboRecipe | GuidanceRecipe]] = {
    "turbo": turbo,
    "guided": guided,
}


def _loop(loop: LoopConfig, num_steps: int) -> LoopConfig:
    return dataclasses.replace(
        loop,
        num_steps=num_steps,
        parallel=ParallelConfig(recompute="blocks", timeout_minutes=5.0),
        optimizer=dataclasses.replace(loop.optimizer, warmup_steps=0),
    )


def _same_draws() -> None:
    def own(self: Session, settings: SettingsT) -> SettingsT:
        return settings

    Session.own = own
    for kind in (DistillationObjective, GuidanceObjective):

        def first(*arguments: Any, kind: Any = kind, **options: Any) -> Any:
            return kind(*arguments, **{**options, "rank": 0})

        mock.patch.object(build, kind.__name__, first).start()


def _work(rank: int, port: str, kind: str, teacher: Path, latents: Path, out: Path) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
    )
    torch.set_num_threads(1)
    _same_draws()
    distill(RECIPES[kind](1), out, teacher=teacher, latents=latents)


def main() -> None:
    """Fork both ranks, and end as the worse of them."""
    kind = sys.argv[1]
    teacher, latents, out = map(Path, sys.argv[2:])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started: list[int] = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _work(rank, port, kind, teacher, latents, out)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        started.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
    raise SystemExit(max(map(abs, codes)))


if __name__ == "__main__":
    main()
