"""What the machine can do at best: products and copies a second, measured in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from petzval.kernels import backends

_SIDES = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}
_ROUNDS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Attributes:
    flops: operations a second of a large square product, two a multiply-add.
    bytes: read and written a second by a large copy.
    """

    flops: float
    bytes: float

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The least that so much work can take: whichever of the two bounds it."""
        return max(flops / self.flops, num_bytes / self.bytes)


@torch.no_grad()
def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The fastest of a few runs of each: what others took of the machine meanwhile is left out."""
    side = _SIDES.get(device.type, 4096)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    room = torch.empty_like(left)
    product = best(lambda: torch.mm(left, right, out=room), device)
    source = torch.ones(_COPY_BYTES.get(device.type, 2**28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = best(lambda: target.copy_(source), device)
    return Ceilings(flops=2 * side**3 / product, bytes=2 * source.nbytes / copy)


def best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest run, after a warm-up."""
    return min(timings(work, device, _ROUNDS))


def timings(work: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Seconds of each run, after a warm-up."""
    work()
    return [timed(work, device)[0] for _ in range(rounds)]


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Seconds of one run, to the end of what it asked of the device, and its result."""
    backends.synchronise(device)
    start = time.perf_counter()
    result = work()
    backends.synchronise(device)
    return time.perf_counter() - start, result


def median(values: list[float]) -> float:
    """Of several runs."""
    return statistics.median(values)
