"""`petzval distill`: teach a model to draw in four steps without guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petzval.cli.console import print_line, stderr


def distill(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, such as mini_turbo.")],
    teacher: Annotated[
        str | None,
        typer.Option(help="Model by name (`petzval models`) or folder. [default: the recipe's]"),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option(help="Cache of latents and captions. [default: latents beside OUT]"),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder whose denoiser the student begins with, such as one of "
            "mini_guided. [default: the teacher's]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run. [default: build/runs/turbo]"),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew in place of going on with the run.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Time of the whole run. [default: the recipe's]", min=0)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that make batches.", min=0, max=256)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: all cores]", min=1, max=1024)
    ] = None,
) -> None:
    """Teach a model to draw in four steps without guidance, or go on with it.

    Prints the path of the checkpoint that it leaves; `petzval generate --model` takes it. The same
    command goes on with a run that was interrupted. The log goes to stderr and into the run's
    folder.
    """
    from petzval.cli.output import check_folder
    from petzval.distill.run import distill
    from petzval.inference.device import choose_device
    from petzval.training.ranks import launched_first
    from petzval.training.watch import interruption

    console = stderr()
    folder = out or Path("build") / "runs" / "turbo"
    check_folder(folder)
    outcome = distill(
        recipe,
        folder,
        teacher=teacher,
        latents=latents,
        start=start,
        resume=not restart,
        minutes=minutes,
        threads=threads,
        device=str(choose_device(device)),
        num_workers=workers,
        report=lambda line: console.print(line, markup=False),
    )
    if outcome.interrupted:
        if launched_first():
            console.print("stopped after a whole step; the same command goes on", markup=False)
        raise interruption()
    if launched_first():
        print_line(outcome.checkpoint)
