"""Back ends by torch's own names: what is here, what each lacks, how much memory, how to give back.

CUDA and ROCm (both "cuda" to torch), XPU, MPS and the CPU. Calls that belong to one maker's devices
stand here and in the rest of this room, and nowhere else in the package.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Lack: TypeAlias = Literal["bfloat16", "float8", "complex numbers", "streams", "fused sinks"]
"""What a back end may lack; see `lacks`."""

ACCELERATORS = ("cuda", "xpu", "mps")
_OUT_OF_MEMORY = (
    "out of memory",  # torch's allocators, CUDA's and HIP's runtimes
    "can't allocate memory",  # the CPU's, on Linux and macOS
    "cannot allocate",
    "not enough memory",  # the CPU's, on Windows
    "bad_alloc",
    "bad allocation",
    "alloc_failed",  # cuBLAS, cuDNN and cuSOLVER by their status
    "allocation_failed",
    "out_of_device_memory",  # Level Zero and Unified Runtime, which XPU stands on
    "out_of_host_memory",
    "out_of_resources",
    "failed to allocate",  # Metal's buffers, which MPS stands on
    "invalid buffer size",
)
"""What runtimes and libraries say, in lower case, where torch has no class of its own for it."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of `mallopt`, by their numbers in glibc's malloc.h."""

HEAP_SWITCH = "PETZVAL_HEAP"
"""Environment variable: with 0 the C library keeps what it would keep by itself."""

_KEPT_BYTES = 2**31 - 1
_MOST_BYTES = 32 * 2**20
"""What old ones take in its place."""

_LARGE_BLOCK = 2**20
_TRIMMED_BYTES = 128 * 1024

_HOLES_BYTES, _HOLES_SHARE = 256_000_000, 0.25
"""A heap that is kept may hold this much that nobody uses, or this share of what somebody does."""

_BFLOAT16_CAPABILITY = (8, 0)
_FLOAT8_CAPABILITY = (8, 9)
_COMPILER_CAPABILITY = (7, 0)


def default_device() -> torch.device:
    """The accelerator that torch names as this machine's, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else torch.device(found.type)


def present(device: torch.device) -> bool:
    """Whether that device is on this machine."""
    index = device.index or 0
    if device.type == "cpu":
        return index == 0
    return device.type == default_device().type and index < torch.accelerator.device_count()


def devices() -> list[torch.device]:
    """The accelerators of this machine, then its CPU."""
    kind = default_device().type
    count = 0 if kind == "cpu" else torch.accelerator.device_count()
    return [*(torch.device(kind, index) for index in range(count)), torch.device("cpu")]


def product_name(device: torch.device) -> str:
    """As its maker calls it; empty where torch does not know."""
    module = _module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else ""


def backend_name(device: torch.device) -> str:
    """CUDA, ROCm, XPU, MPS or CPU."""
    if device.type == "cuda":
        return "CUDA" if torch.version.hip is None else "ROCm"
    return device.type.upper()


def lacks(device: torch.device) -> dict[Lack, str]:
    """What is chosen away on this device, each with what runs in its place.

    Of two cards in one machine each has its own; one that is not here is taken for a recent one.
    """
    lacking: dict[Lack, str] = {}
    if device.type == "cuda":
        capability = cuda_capability(device)
        if capability is not None and capability < _BFLOAT16_CAPABILITY:
            lacking["bfloat16"] = "float16 with scaled products"
        if capability is not None and capability < _FLOAT8_CAPABILITY:
            lacking["float8"] = "float8 weights are decoded before each product"
    elif device.type == "mps":
        if torch.backends.mps.is_available() and not torch.backends.mps.is_macos_or_newer(14, 0):
            lacking["bfloat16"] = "float16 with scaled products"
        lacking["float8"] = "int8 weights"
        lacking["complex numbers"] = "rotations as plain products"
        lacking["streams"] = "layers are fetched when they are needed, not before"
    elif device.type == "xpu":
        if torch.xpu.is_available() and not torch.xpu.is_bf16_supported(including_emulation=False):
            lacking["bfloat16"] = "float16 with scaled products"
        lacking["float8"] = "float8 weights are decoded before each product"
    else:
        lacking["float8"] = "float8 weights are decoded before each product"
        lacking["streams"] = "the next layer's pages are read ahead by the system"
    return lacking


def cuda_capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of NVIDIA's cards; None of others, and where there is none here."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return major, minor


def compiler_lacks(device: torch.device) -> str | None:
    """What torch's compiler misses to make kernels for a CUDA device; None where nothing."""
    if find_spec("triton") is None:
        return "triton is not installed"
    capability = cuda_capability(device)
    if capability is not None and capability < _COMPILER_CAPABILITY:
        return "torch's compiler needs compute capability 7.0"
    return None


def half_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit type to compute in."""
    return torch.float16 if "bfloat16" in lacks(device) else torch.bfloat16


def memory_info(device: torch.device) -> tuple[int, int]:
    """(free, whole) bytes of a device's memory; for a CPU the machine's, (0, 0) where unknown."""
    if device.type == "cpu":
        return _machine_memory()
    with suppress(RuntimeError, AttributeError, NotImplementedError):
        free, whole = torch.accelerator.get_memory_info(device)
        return int(free), int(whole)
    if device.type == "mps" and torch.backends.mps.is_available():
        whole = int(torch.mps.recommended_max_memory())
        return whole - int(torch.mps.driver_allocated_memory()), whole
    return 0, 0


def synchronise(device: torch.device) -> None:
    """Wait for what was asked of the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def give_back(device: torch.device) -> None:
    """Return memory that nothing holds any more: torch's cache, and on Linux the C library's."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        torch.accelerator.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """On Linux: have the C library give free pages back, which it else keeps for later."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def holes_bytes(used: int) -> int:
    """What a heap that is kept may hold in a process that uses so many bytes; see `spare_heap`."""
    return int(max(_HOLES_BYTES, _HOLES_SHARE * used))


class _KeptHeap:
    """What is known of a heap that keeps what was freed.

    Attributes:
        kept: whether it does.
        used: bytes of the process after the last time that free pages were given back.
    """

    kept = False
    used = 0


def spare_heap() -> bool:
    """Between two pieces of work: give free pages back where a heap that is kept has too many.

    By itself it gives none back, and work of ever other sizes leaves ever other holes: 40 pictures
    between 128 and 768 pixels a side left three times what any of them needs.

    Returns:
        Whether it did.
    """
    if not _KeptHeap.kept:
        return False
    held = resident_bytes()
    _KeptHeap.used = min(_KeptHeap.used, held)
    if held - _KeptHeap.used <= holes_bytes(_KeptHeap.used):
        return False
    trim_heap()
    _KeptHeap.used = resident_bytes()
    return True


def keep_heap(keep: bool) -> bool:
    """Have glibc keep what was freed, up to 2 GiB, for what comes next; or give it back at once.

    By itself it learns to keep blocks of up to 32 MB and returns all others. Then the system clears
    pages anew for every layer, up to a third of a decoder's time on a CPU; and the holes between
    blocks that are kept add a fifth and more to the peak of a small process under a limit.

    Args:
        keep: for networks that stay, as long as memory is no matter; False under a limit.

    Returns:
        Whether there is a C library that can be told, and `PETZVAL_HEAP` is not 0.
    """
    _KeptHeap.kept = False
    if sys.platform != "linux" or (keep and os.environ.get(HEAP_SWITCH, "1") == "0"):
        return False
    with suppress(OSError, AttributeError):
        tell = ctypes.CDLL(None).mallopt
        tell(_ARENA_MAX, 1 if keep else 0)  # a thread's own arena returns large blocks at once
        tell(_TRIM_THRESHOLD, _KEPT_BYTES if keep else _TRIMMED_BYTES)
        sizes = (_KEPT_BYTES, _MOST_BYTES) if keep else (_LARGE_BLOCK,)
        told = any(tell(_MMAP_THRESHOLD, size) for size in sizes)
        _KeptHeap.kept = keep and told
        return told
    return False


def side_stream(device: torch.device) -> Any:
    """A stream of a CUDA device beside its current one."""
    return torch.cuda.Stream(device)


def on_stream(stream: Any) -> Any:
    """Context in which work is queued on a CUDA stream."""
    return torch.cuda.stream(stream)


def record_event(stream: Any) -> Any:
    """An event that follows all that a CUDA stream has been asked for so far."""
    event = torch.cuda.Event()
    event.record(stream)
    return event


def current_stream() -> Any:
    """The CUDA stream on which work is queued now."""
    return torch.cuda.current_stream()


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Context in which a tensor's device is the current one, as launches by hand need it."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.get_device())


def accelerator_random_state() -> Tensor | None:
    """State of the CUDA generator; None where it was never used."""
    return torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def set_accelerator_random_state(state: Tensor) -> None:
    """Put the CUDA generator back, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state.cpu())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):  # a mapping that the system has no room for
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def resident_bytes() -> int:
    """Memory that this process holds at present, 0 where the system does not tell."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most that this process ever held, 0 where the system does not tell."""
    return _status("VmHWM")


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device) if device.type != "cpu" else torch.cpu


def _status(name: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _machine_memory() -> tuple[int, int]:
    table = Path("/proc/meminfo")
    if table.is_file():
        rows = (line.split() for line in table.read_text(encoding="ascii").splitlines())
        sizes = {words[0]: int(words[1]) * 1024 for words in rows if len(words) > 1}
        free, whole = sizes.get("MemAvailable:", 0), sizes.get("MemTotal:", 0)
        limit, left = _container_memory()
        return min(free, left), min(whole, limit)
    with suppress(ValueError, OSError, AttributeError):
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return whole, whole
    return 0, 0


_NO_LIMIT = 1 << 62
_CONTAINERS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Control groups, version 2 and 1: folder, limit, usage, and the usage that is given up at need."""


def _container_memory() -> tuple[int, int]:
    """(limit, left) bytes of the container that this is, as the kernel ends processes by it."""
    for folder, limit_file, usage_file, cached in _CONTAINERS:
        with suppress(OSError, ValueError):
            place = Path(folder)
            limit = int((place / limit_file).read_text(encoding="ascii"))  # "max" is no number
            usage = int((place / usage_file).read_text(encoding="ascii"))
            for line in (place / "memory.stat").read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                usage -= int(count) if name == cached else 0
            return limit, max(limit - usage, 0)
    return _NO_LIMIT, _NO_LIMIT
