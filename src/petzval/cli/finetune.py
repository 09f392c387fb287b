"""`petzval finetune`: teach a model a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petzval.cli.console import print_line, stderr


def finetune(
    model: Annotated[str, typer.Argument(help="Model by name (`petzval models`) or folder.")],
    folder: Annotated[
        Path, typer.Argument(help="Pictures, each with its caption in a .txt of the same name.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run and its result.")],
    full: Annotated[
        bool, typer.Option("--full", help="Train all of the denoiser's weights, not a LoRA.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Steps of the whole run.", min=1)] = 1000,
    minutes: Annotated[
        float | None, typer.Option(help="End after this time, too. [default: no limit]", min=0)
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(help="Caption of the pictures that have none.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA.")] = 16,
    alpha: Annotated[
        float | None, typer.Option(help="The change is scaled by alpha / rank. [default: rank]")
    ] = None,
    dropout: Annotated[float, typer.Option(help="Dropout inside the LoRA.")] = 0.0,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers that get a LoRA, as a pattern; give it again for several. "
            "[default: attention and feed-forward of both streams]",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            help="Write the LoRA for another program, too: comfyui, kohya or diffusers.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Pictures a step, of all processes together.")
    ] = 4,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak. [default: 1e-4; with --full 1e-5]")
    ] = None,
    text_dropout: Annotated[
        float, typer.Option(help="Share of the pictures that lose their caption.")
    ] = 0.1,
    base: Annotated[
        int | None, typer.Option(help="Family of sizes. [default: the model's own]")
    ] = None,
    preview_steps: Annotated[
        int | None, typer.Option(help="Sampling steps of the grids. [default: the model's own]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew in place of going on with the run.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: all cores]", min=1, max=1024)
    ] = None,
) -> None:
    """Teach a model pictures of your own: a LoRA, or with --full all of its weights.

    Prints the paths of the results; `petzval generate --lora` takes them. The same command goes on
    with a run that was interrupted. The log goes to stderr and into the run's folder. Several
    processes share a run: torchrun --nproc-per-node N -m petzval finetune …
    """
    import torch

    from petzval.inference.device import choose_device
    from petzval.pretrain.finetune import FinetuneConfig, families, finetune
    from petzval.training.lora import DEFAULT_TARGETS, LoraConfig
    from petzval.training.ranks import launched_first
    from petzval.training.watch import interruption

    config = FinetuneConfig(
        full=full,
        lora=LoraConfig(
            rank=rank,
            alpha=float(rank) if alpha is None else alpha,
            dropout=dropout,
            targets=tuple(target or DEFAULT_TARGETS),
        ),
        num_steps=steps,
        minutes=minutes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        text_dropout=text_dropout,
        base=base,
        trigger=trigger,
        preview_steps=preview_steps,
        seed=seed,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    console = stderr()
    outcome = finetune(
        model,
        folder,
        out,
        config,
        keys=families(keys or ()),
        resume=not restart,
        device=str(choose_device(device)),
        report=lambda line: console.print(line, markup=False),
    )
    if outcome.interrupted:
        if launched_first():
            console.print("stopped after a whole step; the same command goes on", markup=False)
        raise interruption()
    for file in outcome.files:
        print_line(file)
