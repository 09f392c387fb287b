"""`petzval data …`: fetch and build training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from petzval.cli import corpus, corpus_caption, corpus_shard
from petzval.cli.console import print_line, stage_bars, stderr
from petzval.errors import RequestError

SETS = ("mini",)


def build(
    name: Annotated[str, typer.Argument(help="What to build: mini.")],
    out: Annotated[Path | None, typer.Option(help="Folder. [default: build/data/NAME]")] = None,
    processes: Annotated[int, typer.Option(help="Processes that draw.", min=1, max=256)] = 2,
    portraits: Annotated[
        int, typer.Option(help="Parametric portraits, over all styles.", min=0, max=100_000)
    ] = 2000,
) -> None:
    """Fetch openly licensed pictures and names, and build the library that scenes are made from.

    An interrupted build goes on where it stopped. Prints the folder.
    """
    if name not in SETS:
        raise RequestError(f"unknown data set {name[:40]!r}", f"known are {', '.join(SETS)}")
    from petzval.cli.output import check_folder
    from petzval.data.build import build_mini

    folder = out or Path("build") / "data" / name
    check_folder(folder)
    with stage_bars() as progress:
        library = build_mini(
            folder, progress=progress, num_processes=processes, num_portraits=portraits
        )
    stderr().print(f"{len(library.sprites):,} pictures", markup=False)
    print_line(folder)


data: Mapping[str, Callable[..., None]] = {
    "build": build,
    "import": corpus.import_,
    "clean": corpus.clean,
    "text": corpus_shard.text,
    "caption": corpus_caption.caption,
    "shard": corpus_shard.shard,
    "card": corpus_shard.card,
}
"""The verbs of `petzval data`."""
