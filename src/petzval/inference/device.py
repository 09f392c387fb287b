"""Where the networks run, and in which number format."""

from __future__ import annotations

import torch

from petzval.errors import RequestError
from petzval.kernels import backends

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(name: str, *, absent: bool = False) -> torch.device:
    """The device of that name; "auto" is the accelerator where there is one, else the CPU.

    Args:
        name: by torch's names.
        absent: accept an accelerator that is not on this machine: something is planned for it.

    Raises:
        RequestError: unknown, or not on this machine.
    """
    if name == "auto":
        return backends.default_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(
            f"unknown device {name[:40]!r}", "devices are auto, cpu, cuda, cuda:1 …, xpu, mps"
        ) from None
    if absent and device.type in backends.ACCELERATORS:
        return device
    if not backends.present(device):
        raise RequestError(
            f"device {name!r} is not on this machine", "`petzval doctor` shows what is; try cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The format of that name; "auto" is float32 on a CPU and what the device has elsewhere.

    float16 stands for scaled products in it, with everything else in float32: the published
    model's values do not fit (`models.half`).

    Raises:
        RequestError: unknown.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else backends.half_dtype(device)
    if name not in _DTYPES:
        raise RequestError(f"unknown dtype {name[:40]!r}", f"dtypes are auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def device_name(device: torch.device) -> str:
    """Kind of device, with its product name where it has one: "cpu", "cuda (NVIDIA H200)"."""
    product = backends.product_name(device)
    return f"{device.type} ({product})" if product and device.type != "cpu" else device.type
