"""`petzval pretrain`: train a part of a model from scratch, or go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petzval.cli.console import print_line, stderr
from petzval.errors import RequestError

if TYPE_CHECKING:
    from petzval.training.parallel import Compile


def pretrain(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, such as mini_denoiser.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder written by `petzval data build`; for a recipe that trains on a corpus, "
            "such as lens_base_stage1, the shards of `petzval data shard`."
        ),
    ] = Path("build/data/mini"),
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run. [default: build/runs/PART]"),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of tokenizer.json. [default: tokenizer beside OUT]")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew in place of going on with the run.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Time of the whole run. [default: the recipe's]", min=0)
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder: a denoiser's recipe begins with its denoiser, mini_unpack "
            "takes it apart. [default for mini_unpack: the mini that ships inside]"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="On a corpus: name or folder of the checkpoint whose tokenizer, text encoder and "
            "autoencoder are used, frozen. [default: mini]"
        ),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option(help="On a corpus: folder where latents are kept. [default: none are]"),
    ] = None,
    shards: Annotated[
        str | None, typer.Option(help="FIRST:STOP, a part of a latents recipe's shards.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that make batches.", min=0, max=256)
    ] = None,
    compile_blocks: Annotated[
        str | None,
        typer.Option(
            "--compile",
            help="Compile the network's blocks: static (a graph for each shape), dynamic (one for "
            "all) or none. [default: the recipe's]",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: all cores]", min=1, max=1024)
    ] = None,
) -> None:
    """Train a part of a model from scratch, or go on with it from its last state.

    The log goes to stderr and into the run's folder, whose path is printed at the end.
    """
    part = _shards(shards)
    how = _compile(compile_blocks)
    from petzval.cli.output import check_folder
    from petzval.inference.device import choose_device
    from petzval.pretrain.run import run
    from petzval.training.ranks import launched_first

    console = stderr()
    # mini_denoiser looks for what it needs in the folders vae and language_model beside its own.
    folder = out or Path("build") / "runs" / recipe.partition("_")[2]
    check_folder(folder)
    run(
        recipe,
        data_folder=data,
        run_folder=folder,
        tokenizer_folder=tokenizer,
        resume=not restart,
        minutes=minutes,
        threads=threads,
        device=str(choose_device(device)),
        shards=part,
        num_workers=workers,
        start=start,
        model=model,
        latents=latents,
        compile=how,
        report=lambda line: console.print(line, markup=False),
    )
    if launched_first():
        print_line(folder)


def _compile(text: str | None) -> Compile | None:
    if text is None or text == "none" or text == "static" or text == "dynamic":
        return text
    raise RequestError(f"cannot compile {text[:40]!r}", "give --compile static, dynamic or none")


def _shards(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, stop = text.partition(":")
    if not (first.isdecimal() and stop.isdecimal() and int(first) < int(stop)):
        raise RequestError(f"cannot read the shards {text[:40]!r}", "give FIRST:STOP, such as 0:8")
    return int(first), int(stop)
