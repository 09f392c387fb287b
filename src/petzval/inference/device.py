"""Where the networks run, and in which number format."""

from __future__ import annotations

import torch

from petzval.errors import RequestError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        RequestError: unknown, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(
            f"unknown device {name[:40]!r}", "devices are auto, cpu, cuda, cuda:1 …, mps"
        ) from None
    index = device.index or 0
    present = {
        "cpu": index == 0,
        "cuda": torch.cuda.is_available() and index < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available() and index == 0,
    }
    if not present.get(device.type, False):
        raise RequestError(
            f"device {name!r} is not on this machine", "`petzval doctor` shows what is; try cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The format of that name; "auto" is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        RequestError: unknown, or float16, which cannot hold the published model's activations.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name == "float16":
        raise RequestError(
            "float16 overflows here: the denoiser's values reach 140,000, float16 ends at 65,504",
            "use bfloat16",
        )
    if name not in _DTYPES:
        raise RequestError(f"unknown dtype {name[:40]!r}", f"dtypes are auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def device_name(device: torch.device) -> str:
    """Kind of device, with its product name where it has one: "cpu", "cuda (NVIDIA H200)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
