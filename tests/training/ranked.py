"""What the processes of a test do; `launch.py` says how they are started.

Each program runs on all ranks; the first one leaves what it returns in `<program><ranks>.json`, and
whole tensors in `<program><ranks>.safetensors`. The test compares both with one process.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from petzval.models.mmdit import MMDiT
from petzval.pretrain.layout import denoiser_layout
from petzval.training import folders
from petzval.training.loop import train
from petzval.training.optimizer import OptimizerConfig, build_optimizers
from petzval.training.parallel import ParallelConfig, full_state_dict, full_tensor, parallelize
from petzval.training.ranks import Ranks, join_ranks
from petzval.training.sharded import HuggingFaceStorageWriter
from petzval.training.state import RunState
from petzval.training.step import training_step
from petzval.training.weighting import Weighting, weighted
from petzval.weights.checkpoint import Checkpoint
from tests.training.denoising import (
    DenoisingObjective,
    denoiser,
    look,
    sharded_denoiser_run,
    state_of,
)
from tests.training.shared import (
    LAYOUT,
    SharedObjective,
    adamw,
    even,
    loop,
    muon,
    small_model,
    small_state,
)

Result = tuple[dict[str, Any], Mapping[str, Tensor]]


def weights_of(state: RunState) -> dict[str, Tensor]:
    """Parameters and averages, whole."""
    whole = full_state_dict(state.model, state.ranks)
    assert state.ema is not None
    for name, average in state.ema.averages.items():
        whole[f"ema.{name}"] = full_tensor(average).clone()
    return whole


def equality(ranks: Ranks, folder: Path) -> Result:
    """Twenty steps of each optimizer, each with another weighting of unequal batches."""
    sizes = UNEVEN[ranks.size]
    losses: dict[str, list[float]] = {}
    tensors: dict[str, Tensor] = {}
    runs: list[tuple[str, OptimizerConfig, Weighting]] = [
        ("adamw", adamw(), "sample"),
        ("muon", muon(), "token"),
    ]
    for name, config, weighting in runs:
        state = small_state(config, ranks)
        objective = SharedObjective(state.model, ranks.rank, sizes)
        losses[name] = take_steps(state, objective, 20, weighting)
        tensors.update({f"{name}.{key}": value for key, value in weights_of(state).items()})
    return losses, tensors


UNEVEN = {2: (12, 4), 4: (12, 6, 4, 2)}


def take_steps(
    state: RunState, objective: SharedObjective, count: int, weighting: Weighting
) -> list[float]:
    reports = [
        training_step(
            objective,
            objective.batch(state.step),
            state,
            max_grad_norm=0.5,
            weighting=weighting,
        )
        for _ in range(count)
    ]
    return [report.loss for report in reports]


def replicated(ranks: Ranks, folder: Path) -> Result:
    """Two copies of the model, each on half of the ranks."""
    result: list[float] = []
    with_copies = dataclasses.replace(ranks, mesh=_mesh_of_two_copies(ranks))
    state = small_state(muon(), with_copies, replicate=2)
    objective = SharedObjective(state.model, ranks.rank, even(ranks.size))
    result = take_steps(state, objective, 20, "rank")
    return {"losses": result}, weights_of(state)


def _mesh_of_two_copies(ranks: Ranks) -> Any:
    names = ("dp_replicate", "dp_shard")
    return init_device_mesh("cpu", (2, ranks.size // 2), mesh_dim_names=names)


def gradients(ranks: Ranks, folder: Path) -> Result:
    """Gradients of unequal batches for each weighting, with and without a loss for each sample."""
    tensors: dict[str, Tensor] = {}
    weightings: tuple[Weighting, ...] = ("sample", "rank", "token")
    for weighting in weightings:
        for by_item in (False, True):
            model = small_model()
            root = parallelize(model, ParallelConfig(), ranks, LAYOUT)
            assert root is not None
            objective = SharedObjective(model, ranks.rank, UNEVEN[ranks.size], by_item=by_item)
            value = root(functools.partial(_weighted, objective, weighting, ranks))
            value.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                key = f"{weighting}.{by_item}.{name}"
                tensors[key] = full_tensor(parameter.grad).clone()
    return {}, tensors


def _weighted(objective: SharedObjective, weighting: Weighting, ranks: Ranks) -> Tensor:
    return weighted(objective.loss(objective.batch(3)), weighting, ranks)[0]


def spoilt(ranks: Ranks, folder: Path) -> Result:
    """A poisoned step and a spike, on the last rank only."""
    state = small_state(adamw(), ranks)
    spoilt = {7: float("nan"), 12: 1e4}
    objective = SharedObjective(state.model, ranks.rank, even(ranks.size), spoilt=spoilt)
    losses = take_steps(state, objective, 20, "rank")
    guards = ranks.gather(dataclasses.asdict(state.guard))
    return {"guards": guards, "losses": losses}, weights_of(state)


def first_leg(ranks: Ranks, folder: Path) -> Result:
    """Thirty steps, with checkpoints at every tenth."""
    return _leg(ranks, folder / f"from_none{ranks.size}", 30)


def alone(ranks: Ranks, folder: Path) -> Result:
    """The ten steps that `third_leg` goes on from."""
    return _leg(ranks, folder / "alone", 10)


def second_leg(ranks: Ranks, folder: Path) -> Result:
    """Goes on where four ranks have saved step 10."""
    _inherit(ranks, folder / "from_none4", folder / "from_four")
    return _leg(ranks, folder / "from_four", 30)


def third_leg(ranks: Ranks, folder: Path) -> Result:
    """Goes on where one process has saved step 10, in its own format."""
    _inherit(ranks, folder / "alone", folder / "from_one")
    return _leg(ranks, folder / "from_one", 30)


def _inherit(ranks: Ranks, source: Path, target: Path) -> None:
    """A run's state at step 10, as the start of another run."""
    name = Path("checkpoints") / "step-00000010"
    if ranks.is_first:
        shutil.copytree(source / name, target / name)
    ranks.wait()


def _leg(ranks: Ranks, folder: Path, num_steps: int) -> Result:
    state = small_state(muon(), ranks)
    objective = SharedObjective(state.model, ranks.rank, even(ranks.size))
    lines: list[str] = []
    outcome = train(objective, state, loop(num_steps, 10), folder, report=lines.append)
    result = {"reason": outcome.reason, "lines": lines, "origins": ranks.gather(objective.origin)}
    return result, weights_of(state)


def terminated(ranks: Ranks, folder: Path) -> Result:
    """The last rank is asked to stop in its fifth step."""

    class Stopping(SharedObjective):
        def batch(self, step: int) -> Any:
            if step == 5 and self.rank == ranks.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    state = small_state(adamw(), ranks)
    objective = Stopping(state.model, ranks.rank, even(ranks.size))
    outcome = train(objective, state, loop(10**6), folder / "terminated")
    ends = ranks.gather((outcome.reason, state.step, str(outcome.checkpoint)))
    return {"ends": ends}, {}


def uninterrupted(ranks: Ranks, folder: Path) -> Result:
    """What `killed` would have been."""
    return _killable(ranks, folder / "uninterrupted")


def killed(ranks: Ranks, folder: Path) -> Result:
    """Dies while the second checkpoint is written; what dies when is asked by the environment."""
    moment = os.environ.get("PETZVAL_TEST_KILL", "never")
    if moment == "writing" and ranks.rank == 1:
        _die_in(HuggingFaceStorageWriter, "write_data", call=2)
    if moment == "renaming" and ranks.rank == 0:
        _die_in(folders, "commit", call=1)
    return _killable(ranks, folder / "killed")


def seen(ranks: Ranks, folder: Path) -> Result:
    """What the death before left behind."""
    checkpoints = folder / "killed" / "checkpoints"
    picked = [path.name for path in folders.list_checkpoints(checkpoints)]
    half = (checkpoints / ".incomplete-00000008").is_dir()
    found = ranks.gather({"picked": picked, "half": half})[0]
    return found, {}


def _killable(ranks: Ranks, folder: Path) -> Result:
    state = small_state(muon(), ranks)
    objective = SharedObjective(state.model, ranks.rank, even(ranks.size))
    train(objective, state, loop(12, 4), folder)
    return {}, weights_of(state)


def _die_in(owner: Any, name: str, *, call: int) -> None:
    """kill -9 in the given call of a function, after it has left half a file."""
    real = getattr(owner, name)
    calls: list[int] = []

    def dying(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            if owner is not folders:
                (Path(args[0].path) / "half.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(owner, name, dying)


def denoising(ranks: Ranks, folder: Path) -> Result:
    """The real network, the last rank without any text; in float32, recomputed, in bfloat16."""
    result: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, config in {
        "float32": ParallelConfig(),
        "recomputed": ParallelConfig(recompute="operations", reshard=False),
        "bfloat16": ParallelConfig(parameters="bfloat16"),
    }.items():
        losses, weights = sharded_denoiser_run(ranks, config)
        result[name] = losses
        tensors.update({f"{name}.{key}": value for key, value in weights.items()})
    return result, tensors


def compiled(ranks: Ranks, folder: Path) -> Result:
    """The real network, compiled block by block under FSDP."""
    losses, weights = sharded_denoiser_run(ranks, ParallelConfig(compile="static"))
    return {"losses": losses}, weights


def evaluated(ranks: Ranks, folder: Path) -> Result:
    """Averages are looked at before the first step and between steps; nothing moves by it."""
    model: MMDiT = denoiser()
    root = parallelize(model, ParallelConfig(), ranks, denoiser_layout(model.config))
    state = state_of(model, ranks, root)
    before = look(state)
    objective = DenoisingObjective(model, ranks.rank, ranks.size)
    for _ in range(2):
        training_step(objective, objective.batch(state.step), state, max_grad_norm=1.0)
    after = look(state)
    training_step(objective, objective.batch(state.step), state, max_grad_norm=1.0)
    return {}, {"before": before, "after": after, **full_state_dict(model, ranks)}


def corpus_steps(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Three steps over the shards in the folder: what was seen, losses, norms of gradients."""
    from tests.conftest import GOLDENS
    from tests.pretrain.corpus import denoiser as tiny_denoiser
    from tests.pretrain.corpus import objective as corpus_objective
    from tests.pretrain.corpus import settings

    golden = GOLDENS / "checkpoint"
    model = tiny_denoiser(Checkpoint.open(golden))
    root = parallelize(model, ParallelConfig(), ranks, denoiser_layout(model.config))
    state = RunState(
        model=model, optimizers=build_optimizers(model, adamw()), ranks=ranks, root=root
    )
    objective = corpus_objective(folder / "shards", golden, settings(), ranks=ranks, model=model)
    each = objective.batches_per_step
    seen: list[list[int]] = []
    losses: list[float] = []
    norms: list[float] = []
    for step in range(3):
        batches = [objective.prepare(objective.batch(step * each + part)) for part in range(each)]
        own = [use.id for batch in batches for use in batch.uses]
        seen.append([number for ids in ranks.gather(own) for number in ids])
        report = training_step(
            objective,
            batches[0],
            state,
            max_grad_norm=1.0,
            weighting="sample",
            more=batches[1:],
        )
        losses.append(report.loss)
        norms.append(report.grad_norm)
    return {"ids": seen, "losses": losses, "grad_norms": norms}


def corpus(ranks: Ranks, folder: Path) -> Result:
    """As `corpus_steps`; then a whole run of two steps."""
    from tests.conftest import GOLDENS
    from tests.pretrain.corpus import train_some

    seen = corpus_steps(ranks, folder)
    losses = train_some(
        folder / "shards",
        GOLDENS / "checkpoint",
        folder / "run",
        2,
        ranks=ranks,
        num_previews=1,
    )
    return {**seen, "run": losses}, {}


PROGRAMS: dict[str, Callable[[Ranks, Path], Result]] = {
    program.__name__: program
    for program in (
        equality,
        replicated,
        gradients,
        spoilt,
        first_leg,
        alone,
        second_leg,
        third_leg,
        terminated,
        uninterrupted,
        killed,
        seen,
        denoising,
        compiled,
        evaluated,
        corpus,
    )
}


def main(run: Callable[[Path, list[str]], None]) -> None:
    """Legs in turn: each forks its ranks from this process, which has imported all they need.

    Args:
        run: what a rank does with the folder and the names of a leg's programs.
    """
    folder = Path(sys.argv[1])
    codes: list[list[int]] = []
    for size, programs, moment in json.loads(sys.argv[2]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        ranks = range(size)
        started = [_fork(rank, size, port, moment, folder, programs, run) for rank in ranks]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started])
    print(json.dumps(codes))


def _fork(
    rank: int,
    size: int,
    port: str,
    moment: str,
    folder: Path,
    programs: list[str],
    run: Callable[[Path, list[str]], None],
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            PETZVAL_TEST_KILL=moment,
        )
        log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(folder, programs)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(folder: Path, programs: list[str]) -> None:
    torch.set_num_threads(1)
    with join_ranks(torch.device("cpu"), timeout_minutes=3.0) as (ranks, _):
        for name in programs:
            result, tensors = PROGRAMS[name](ranks, folder)
            if ranks.is_first:
                name = f"{name}{ranks.size}"
                whole = {key: value.detach().contiguous() for key, value in tensors.items()}
                save_file(whole, folder / f"{name}.safetensors")
                (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(_run)
