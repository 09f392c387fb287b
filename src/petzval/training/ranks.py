"""The processes of a run and what they tell one another; a run of one process tells nobody.

`torchrun` starts the processes and gives each its number in the environment. Numbers that decide
something (stop, save, how much a batch weighs) travel over gloo on the CPU, so that they never wait
for a GPU and never queue behind its collectives.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from petzval.errors import TrainingError

REPLICATE, SHARD = "dp_replicate", "dp_shard"
"""Names of the mesh's two dimensions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among those of the run. The default is a run of one process.

    Attributes:
        rank: number of this process, 0 … size - 1.
        size: number of processes.
        mesh: [replicate, shard] grid of the processes; None where there is one.
        control: group for numbers on the CPU.
        background: group for the thread that writes checkpoints, whose messages must not mix with
            the training's.
    """

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    control: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs, pictures and results."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over the ranks, in float64; every rank gets the same bits."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum([float(flag)])[0] > 0

    def of_first(self, value: float) -> float:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0, group=self.control)
        return float(shared[0])

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank. Only our own processes are listened to."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self.control)


def launched_size() -> int:
    """Number of processes that torchrun started; 1 without it."""
    return _number("WORLD_SIZE", 1)


def launched_first() -> bool:
    """Whether this is the process that speaks; true without torchrun."""
    return _number("RANK", 0) == 0


@contextmanager
def join_ranks(
    device: torch.device, *, replicate: int = 1, timeout_minutes: float = 10.0
) -> Generator[tuple[Ranks, torch.device]]:
    """Meet the other processes of a torchrun; without torchrun there is nothing to join.

    Args:
        device: "cuda" takes the GPU with this process's number on its machine, over NCCL.
        replicate: number of copies of the sharded model, each on `size / replicate` ranks.
        timeout_minutes: a collective that takes longer ends the run: another rank is gone.

    Yields:
        The ranks, and the device of this one.

    Raises:
        TrainingError: the processes do not divide into that many copies, or torchrun's environment
            is incomplete.
    """
    size = launched_size()
    if size == 1:
        yield Ranks(), device
        return
    if replicate < 1 or size % replicate:
        raise TrainingError(
            f"{size} processes do not divide into {replicate} copies of the model",
            "set replicate to a divisor of the number of processes",
        )
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        device = torch.device("cuda", _number("LOCAL_RANK", 0))
        torch.accelerator.set_device_index(device)
    try:
        dist.init_process_group(backend, timeout=timeout)
    except ValueError as error:
        raise TrainingError(
            f"the environment of a launch with several processes is incomplete: {error}",
            "start with torchrun: torchrun --nproc-per-node 2 -m petzval pretrain RECIPE",
        ) from error
    try:
        mesh = init_device_mesh(
            device.type, (replicate, size // replicate), mesh_dim_names=(REPLICATE, SHARD)
        )
        yield (
            Ranks(
                rank=dist.get_rank(),
                size=size,
                mesh=mesh,
                control=_cpu_group(timeout),
                background=_cpu_group(timeout),
            ),
            device,
        )
    finally:
        dist.destroy_process_group()


def _cpu_group(timeout: datetime.timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
