"""`petzval doctor`: the first lines of every bug report."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import textwrap
from importlib import metadata
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
        "back end": _back_end(),
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
            print_line(_hung(f"  {name:<{width}}  ", value))


def _hung(label: str, value: str) -> str:
    """On a terminal, further lines stand below the first one's text; elsewhere a line is one."""
    if not (sys.stdout and sys.stdout.isatty()):
        return label + value
    beside = shutil.get_terminal_size().columns - len(label)
    lines = textwrap.wrap(value, max(24, beside), break_long_words=False, break_on_hyphens=False)
    return label + f"\n{' ' * len(label)}".join(lines)


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

    from petzval.kernels import backends

    devices: dict[str, str] = {}
    for device in backends.devices():
        free, whole = (size / 2**30 for size in backends.memory_info(device))
        memory = f"{free:.1f} of {whole:.1f} GiB free" if whole else "memory unknown"
        if device.type == "cpu":
            what = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used, "
            what += torch.backends.cpu.get_cpu_capability()
        else:
            what = f"{backends.backend_name(device)} {backends.product_name(device)}".strip()
        devices[str(device)] = f"{what}, {memory}"
    return devices


def _back_end() -> dict[str, str]:
    """What the device that "auto" takes lacks, and what runs in its place."""
    from petzval.inference.device import choose_dtype
    from petzval.kernels import backends

    device = backends.default_device()
    chosen = str(choose_dtype("auto", device)).removeprefix("torch.")
    report = {"device": f"{device.type} ({backends.backend_name(device)})", "computes in": chosen}
    return report | {f"lacks {what}": instead for what, instead in backends.lacks(device).items()}


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
