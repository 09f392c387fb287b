"""How fast a machine is, measured in a second or two: the divisors of predicted seconds."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from petzval.config import check_ranges, setting
from petzval.kernels import backends
from petzval.kernels.mxfp4 import decode_mxfp4

_SHORTEST = 0.1
_READ_BYTES = 1 << 26
_TIMES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """What predictions divide by.

    Attributes:
        flops: operations a second of a large product on the device, in the plan's type.
        cpu_flops: the same on the CPU.
        decoded: MXFP4 values a second on the device.
        cpu_decoded: the same on the CPU.
        copied: bytes a second that the device reads and writes in simple operations.
        cpu_copied: the same on the CPU.
        cleared: bytes a second of new memory that the system gives a CPU.
        read: bytes a second from the checkpoint's files, not from the system's cache.
        sent: bytes a second from pinned memory to the device; what the CPU copies in its own.
    """

    flops: float = setting(minimum=1.0)
    cpu_flops: float = setting(minimum=1.0)
    decoded: float = setting(minimum=1.0)
    cpu_decoded: float = setting(minimum=1.0)
    copied: float = setting(minimum=1.0)
    cpu_copied: float = setting(minimum=1.0)
    cleared: float = setting(minimum=1.0)
    read: float = setting(minimum=1.0)
    sent: float = setting(minimum=1.0)

    def __post_init__(self) -> None:
        check_ranges(self, where="speeds")


ABSENT = {"flops": 1e14, "decoded": 3e10, "copied": 6e11, "sent": 2e10}
"""Taken for an accelerator that is not here: a card that reaches 100 TFLOP/s and 600 GB/s, on PCIe
4.0 x 16."""


def measure_speeds(device: torch.device, dtype: torch.dtype, files: Sequence[Path] = ()) -> Speeds:
    """Time products, decodings, copies and a read; a tenth of a second each.

    Args:
        device: where the denoiser is to run; of one that is not here `ABSENT` is taken.
        dtype: in which type.
        files: a part of the largest one is read, past the system's cache where that can be asked.
    """
    cpu = torch.device("cpu")
    cpu_dtype = dtype if dtype != torch.float16 else torch.float32
    of_cpu = _rates(cpu, cpu_dtype)
    if device.type == "cpu":
        its = of_cpu | {"sent": _sent(device)}
    elif backends.present(device):
        its = _rates(device, dtype) | {"sent": _sent(device)}
    else:
        its = ABSENT
    of_cpu = {f"cpu_{name}": rate for name, rate in of_cpu.items()}
    return Speeds(cleared=_cleared(), read=_read(files), **of_cpu, **its)


def _rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    return {
        "flops": _flops(device, dtype),
        "decoded": _decoded(device, dtype),
        "copied": _copied(device),
    }


@cache
def measured_speeds(
    device: torch.device, dtype: torch.dtype, files: tuple[Path, ...] = ()
) -> Speeds:
    """The same, measured once in a process: plans are made again and again."""
    return measure_speeds(device, dtype, files)


def _rate(amount: float, work: Callable[[], object], device: torch.device) -> float:
    """Amount a second of work that runs until a tenth of a second has passed."""
    work()
    backends.synchronise(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SHORTEST:
        work()
        backends.synchronise(device)
        count += 1
    return amount * count / (time.perf_counter() - start)


def _flops(device: torch.device, dtype: torch.dtype) -> float:
    size = 1024 if device.type == "cpu" else 4096
    left = torch.ones((size, size), dtype=dtype, device=device)
    return _rate(2.0 * size**3, lambda: left @ left, device)


def _decoded(device: torch.device, dtype: torch.dtype) -> float:
    """Of a matrix of the published width: a small one would stay in a CPU's cache."""
    blocks = torch.full((2880, 90, 16), 0x31, dtype=torch.uint8, device=device)
    scales = torch.full((2880, 90), 127, dtype=torch.uint8, device=device)
    return _rate(2880.0 * 90 * 32, lambda: decode_mxfp4(blocks, scales, dtype), device)


def _copied(device: torch.device) -> float:
    """Of two operands and a sum in memory that is there."""
    values = torch.ones(_READ_BYTES // 4, device=device)
    out = torch.empty_like(values)
    return _rate(3.0 * values.nbytes, lambda: torch.add(values, values, out=out), device)


def _cleared() -> float:
    """Of a mapping that is written for the first time, what writing it again takes left out.

    The best of some: a process that another one interrupts says nothing about the system.
    """
    return _READ_BYTES / max(min(_clearing() for _ in range(_TIMES)), 1e-4)


def _clearing() -> float:
    with mmap.mmap(-1, _READ_BYTES) as mapping:
        memory = torch.frombuffer(mapping, dtype=torch.uint8)
        start = time.perf_counter()
        memory.fill_(1)
        first = time.perf_counter()
        memory.fill_(2)
        again = time.perf_counter()
        del memory
    return max((first - start) - (again - first), 0.0)


def _sent(device: torch.device) -> float:
    values = torch.empty(_READ_BYTES // 4, dtype=torch.uint8)
    if device.type == "cpu":
        return _rate(float(values.nbytes), values.clone, device)
    if "streams" not in backends.lacks(device):
        values = values.pin_memory()
    return _rate(float(values.nbytes), lambda: values.to(device), device)


def _read(files: Sequence[Path]) -> float:
    """Bytes a second; ten milliseconds at least are reckoned, so that a tiny file says nothing."""
    sizes = {file: file.stat().st_size for file in files}
    if not sizes:
        return 1e9
    largest = max(sizes, key=lambda file: sizes[file])
    wanted = min(sizes[largest], _READ_BYTES)
    with largest.open("rb", buffering=0) as opened:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(opened.fileno(), 0, wanted, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        found = len(opened.read(wanted))
    seconds = time.perf_counter() - start
    return found / max(seconds, 1e-2) if found == _READ_BYTES else max(found / seconds, 1e9)
