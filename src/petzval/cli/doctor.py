"""`petzval doctor`: the first lines of every bug report."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from petzval.cli.console import print_json, print_line

_PACKAGES = ("torch", "safetensors", "tokenizers", "numpy", "pillow", "typer", "rich")


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report versions, devices, memory and the kernels chosen, with reasons."""
    report = {
        "versions": _versions(),
        "devices": _devices(),
        "kernels": _kernels(),
        "models": _models(),
    }
    if json:
        print_json(report)
        return
    for heading, lines in report.items():
        print_line(heading)
        width = max(len(name) for name in lines)
        for name, value in lines.items():
            print_line(f"  {name:<{width}}  {value}")


def _versions() -> dict[str, str]:
    import petzval

    versions = {"petzval": petzval.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    return versions


def _devices() -> dict[str, str]:
    import torch

    devices = {
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used, "
        f"{torch.backends.cpu.get_cpu_capability()}, {_memory()}"
    }
    for index in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        name = torch.cuda.get_device_name(index)
        devices[f"cuda:{index}"] = f"{name}, {free:.1f} of {total:.1f} GiB free"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _memory() -> str:
    """Free and whole memory, where the system tells."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return "memory unknown"
    lines = (line.split() for line in table.read_text().splitlines())
    sizes = {words[0]: int(words[1]) / 2**20 for words in lines if len(words) > 1}
    return f"{sizes.get('MemAvailable:', 0):.1f} of {sizes.get('MemTotal:', 0):.1f} GiB free"


def _kernels() -> dict[str, str]:
    from petzval.inference.device import choose_device
    from petzval.kernels.dispatch import describe

    device = choose_device("auto")
    return {choice.operation: f"{choice.kernel}: {choice.reason}" for choice in describe(device)}


def _models() -> dict[str, Any]:
    from petzval.errors import PetzvalError
    from petzval.inference.variants import VARIANTS, locate

    found: dict[str, Any] = {}
    for name in VARIANTS:
        try:
            found[name] = str(locate(name).folder)
        except PetzvalError as error:
            found[name] = f"absent ({error.hint})"
    return found
