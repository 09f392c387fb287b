"""`petzval bench`: how fast this machine makes pictures, technique by technique."""

from __future__ import annotations

import json as json_module
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petzval.cli import options
from petzval.cli.console import complain, print_json, print_line
from petzval.errors import RequestError

if TYPE_CHECKING:
    import torch

    from petzval.bench.setting import Setting


def bench(
    model: Annotated[
        str | None,
        typer.Option(help="Sizes of mini or lens, random weights. [default: a table of rows]"),
    ] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "256x256",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 4,
    guidance: Annotated[float, typer.Option(help="1 is without.")] = 1.0,
    batch: Annotated[int, typer.Option(help="Pictures that run together.")] = 1,
    text_tokens: Annotated[int, typer.Option(help="Of each prompt.")] = 40,
    blocks: Annotated[
        int, typer.Option(help="Build only so many denoiser blocks, and extrapolate; 0 is all.")
    ] = 0,
    encoder_layers: Annotated[
        int, typer.Option(help="Build only so many encoder layers, and extrapolate; 0 is all.")
    ] = 0,
    steps_measured: Annotated[
        int, typer.Option(help="Draw only so many steps, and extrapolate; 0 is all.")
    ] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Begin no further round or way of a row after so long. [default: no limit]",
            min=0,
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Runs of each way after its warm-up.")] = 3,
    compile: Annotated[
        bool, typer.Option("--compile", help="Measure compiled networks, too: takes minutes.")
    ] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    out: Annotated[
        Path | None, typer.Option(help="Append each row to this file, as a line of JSON.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
) -> None:
    """Measure how fast pictures are made: the original's way, then one technique after the other.

    Networks get random weights on the spot, nothing is downloaded. Without --model it measures the
    rows that the published table has for this kind of device.
    """
    if out is not None:
        _check_writable(out)
    import torch

    from petzval.bench.setting import Setting, usual_settings
    from petzval.bench.table import table
    from petzval.inference.device import choose_device, choose_dtype
    from petzval.resolution import resolve

    if threads is not None:
        torch.set_num_threads(threads)
    place = choose_device(device)
    if model is None:
        settings = usual_settings(place)
    else:
        number = choose_dtype("auto" if dtype is None else dtype, place)
        resolution = resolve(size=size)
        settings = [
            Setting(
                model=model,
                height=resolution.height,
                width=resolution.width,
                steps=steps,
                guidance=guidance,
                batch=batch,
                text_tokens=text_tokens,
                blocks=blocks,
                encoder_layers=encoder_layers,
                dtype=str(number).removeprefix("torch."),
                rounds=rounds,
                steps_measured=steps_measured,
            )
        ]
    for setting in settings:
        row = _measured(setting, place, compile=compile, seconds=seconds)
        if out is not None:
            _append(out, row)
        if json:
            print_json(row)
        else:
            print_line(table(row))


def _measured(
    setting: Setting, device: torch.device, *, compile: bool, seconds: float | None
) -> dict[str, Any]:
    """One row, with progress on stderr."""
    from rich.text import Text

    from petzval.bench.waterfall import waterfall
    from petzval.cli.console import stderr

    with stderr().status(Text(setting.title)) as status:
        return waterfall(
            setting,
            device,
            compile=compile,
            seconds=math.inf if seconds is None else seconds,
            progress=lambda text: status.update(Text(text)),
        )


def _check_writable(path: Path) -> None:
    """Refuse a file that cannot be written before minutes are measured, not after."""
    folder = path.parent
    why = ""
    if path.is_dir():
        why = "it is a folder"
    elif not folder.is_dir():
        why = f"{folder} is no folder"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        why = "Permission denied"
    if why:
        raise RequestError(f"{path}: cannot be written: {why}", "name another file with --out")


def _append(path: Path, row: dict[str, Any]) -> None:
    """Keep a row; a file that cannot be written loses no measurement: the row is printed."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json_module.dumps(row) + "\n")
    except OSError as error:
        complain("warning", json_module.dumps(row))
        raise RequestError(
            f"{path}: cannot be written: {error.strerror}", "name another file with --out"
        ) from None
