"""`petzval compare`: several models, or one at several step counts, on the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petzval.cli import options
from petzval.cli.console import plain_warnings, print_line, stage_bars, stderr

if TYPE_CHECKING:
    from petzval.evals.comparison import RealPicture


def compare(
    candidates: Annotated[
        list[str],
        typer.Argument(help="MODEL, MODEL@STEPS or MODEL@STEPS@GUIDANCE; the first is the mark."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of pictures and scores; what is in it is used again.")
    ] = Path("build/comparison"),
    limit: Annotated[int | None, typer.Option(help="Prompts. [default: all]", min=1)] = None,
    num: Annotated[int, typer.Option(help="Pictures per prompt.", min=1, max=64)] = 3,
    seed: Annotated[int, typer.Option(help="Of each prompt's first picture.", min=0)] = 0,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="WIDTHxHEIGHT; give it again for several. [default: the model's]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of `petzval data build`: measure distances from its pictures."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write values and errors here, as JSON lines.")
    ] = None,
    grid: Annotated[Path | None, typer.Option(help="Write the first pictures here, a PNG.")] = None,
    device: options.Device = "auto",
) -> None:
    """Compare models or step counts: following, distance from real pictures, variety, sharpness.

    Prints each measure with its standard error over prompts, and as a multiple of the first
    candidate's. Can be stopped at any time: the same command goes on.
    """
    from petzval.evals.comparison import Candidate
    from petzval.evals.comparison import compare as run
    from petzval.evals.comparison_report import comparison_table, picture_grid, write_entries
    from petzval.evals.store import png_bytes
    from petzval.inference.image import write_atomically
    from petzval.scoring.backbone import load_efficientnet
    from petzval.scoring.bundle import load_judge

    parsed = [Candidate.parse(text) for text in candidates]
    with plain_warnings(), stage_bars() as progress:
        comparison = run(
            parsed,
            out=out,
            scorer=load_judge(),
            network=load_efficientnet(),
            real=None if data is None else _real_pictures(data),
            sizes=size or (None,),
            limit=limit,
            num_images=num,
            seed=seed,
            device=device,
            progress=progress,
        )
    print_line(comparison_table(comparison.entries))
    print_line("as multiples of the first\n")
    print_line(comparison_table(comparison.entries, relative=True))
    if record is not None:
        write_entries(record, comparison.entries)
        stderr().print(f"record: {record}", markup=False)
    if grid is not None:
        write_atomically(grid, png_bytes(picture_grid(comparison.samples)))
        stderr().print(f"grid: {grid}", markup=False)


def _real_pictures(folder: Path) -> RealPicture:
    from petzval.data.sprites import SpriteLibrary
    from petzval.evals.real_scenes import real_picture

    library = SpriteLibrary.open(folder)
    return lambda question, number, size: real_picture(
        library, question, number, size, known_style=True
    )
