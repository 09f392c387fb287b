"""See the package: measure, sizes, ablate, report."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from petzval.data.sprites import SpriteLibrary
from petzval.evals.comparison import Candidate, Comparison, compare
from petzval.evals.comparison_report import picture_grid, points, read_entries, write_entries
from petzval.evals.real_scenes import real_picture
from petzval.inference.image import write_atomically
from petzval.scoring.backbone import load_efficientnet
from petzval.scoring.bundle import load_judge
from research.turbo import arms

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS, PICTURES = REPOSITORY / "research" / "results", REPOSITORY / "docs" / "pictures"
STUDENT, TEACHER = "mini-turbo", "mini"
MEASURED = ("right", "fulfilled", "frechet", "variety", "sharpness")

TRAINED_SIZES = ("256x256", "352x176", "208x320")
NEW_SIZES = ("192x192", "240x288")
"""WIDTHxHEIGHT; no bucket of mini's training or its student's has them."""

Data = Annotated[Path, typer.Option(help="Folder of `petzval data build mini`.")]
Threads = Annotated[int, typer.Option(help="Of arithmetic.", min=1)]
Limit = Annotated[int, typer.Option(help="Prompts.", min=1)]
Student = Annotated[str, typer.Option(help="Name or folder of the student.")]
Also = Annotated[list[str] | None, typer.Option(help="Further student to measure beside it.")]

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command()
def measure(
    data: Data = Path("build/data/mini"),
    student: Student = STUDENT,
    also: Also = None,
    limit: Limit = 200,
    threads: Threads = 1,
) -> None:
    """Student and teacher at several step counts, three pictures a prompt."""
    teachers = [f"{TEACHER}@{steps}" for steps in ("50", "20", "8", "4", "4@1")]
    candidates = [*teachers, *(also or []), student]
    _record("turbo", _compared(candidates, data, limit=limit, threads=threads))


@app.command()
def sizes(
    data: Data = Path("build/data/mini"),
    student: Student = STUDENT,
    limit: Limit = 70,
    threads: Threads = 1,
) -> None:
    """Five sizes, two of them new to teacher and student."""
    candidates = [f"{TEACHER}@20", f"{TEACHER}@4", student]
    comparison = _compared(
        candidates, data, limit=limit, num=2, threads=threads, sizes=(*TRAINED_SIZES, *NEW_SIZES)
    )
    _record("turbo-sizes", comparison)


@app.command()
def ablate(
    data: Data = Path("build/data/mini"),
    latents: Annotated[Path, typer.Option(help="Encoded pictures.")] = Path("build/runs/latents"),
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("build/runs/ablation"),
    limit: Limit = 70,
    threads: Threads = 1,
) -> None:
    """Short distillations with one term left out each; goes on where it was stopped."""
    found = [arms.train(out, arm, latents=latents, threads=threads) for arm in arms.ARMS]
    candidates = [f"{TEACHER}@20", f"{TEACHER}@4@1", *map(str, found)]
    comparison = _compared(
        candidates, data, limit=limit, num=2, threads=threads, sizes=(arms.SIZE,)
    )
    _record("turbo-ablation", comparison)


@app.command()
def report() -> None:
    """Draw the plots again from what was recorded."""
    for name in ("turbo", "turbo-ablation"):
        entries = read_entries(RESULTS / f"{name}.jsonl")
        write_atomically(PICTURES / f"{name}-measures.png", points(entries, MEASURED))


def _compared(
    candidates: list[str],
    data: Path,
    *,
    limit: int,
    num: int = 3,
    threads: int,
    sizes: tuple[str | None, ...] = (None,),
) -> Comparison:
    torch.set_num_threads(threads)
    library = SpriteLibrary.open(data)
    return compare(
        [Candidate.parse(one) for one in candidates],
        out=REPOSITORY / "build" / "comparison",
        scorer=load_judge(),
        network=load_efficientnet(),
        real=lambda question, number, size: real_picture(
            library, question, number, size, known_style=True
        ),
        sizes=sizes,
        limit=limit,
        num_images=num,
        device="cpu",
        num_shown=10,
    )


def _record(name: str, comparison: Comparison) -> None:
    write_entries(RESULTS / f"{name}.jsonl", comparison.entries)
    sheet = io.BytesIO()
    Image.fromarray(picture_grid(comparison.samples)).save(sheet, "JPEG", quality=88)
    write_atomically(PICTURES / f"{name}-grid.jpg", sheet.getvalue())
    entries = comparison.entries
    if len({(one.height, one.width) for one in entries}) == 1:
        write_atomically(PICTURES / f"{name}-measures.png", points(entries, MEASURED))


if __name__ == "__main__":
    app()
