"""`petzval data import` and `petzval data clean`: pictures come in, and are judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petzval.cli.console import print_json, print_line, print_table, printable, stage_bars, stderr
from petzval.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from petzval.data.corpus.clean import CleaningSettings
    from petzval.data.corpus.manifest import Corpus
    from petzval.data.corpus.sources import Refusal, Source
    from petzval.data.corpus.yields import Yield

FORMS = ("folder", "tars", "parquet", "scenes")
NUM_SHOWN = 5

Folder = Annotated[Path, typer.Argument(help="Folder of the corpus.")]
Engine = Annotated[
    str, typer.Option(help="local: processes here; ray: the cluster of RAY_ADDRESS, or one here.")
]
Workers = Annotated[int, typer.Option(help="Parts worked on at a time.", min=1, max=100_000)]


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of pictures, WebDataset tar or folder of tars, parquet of paths, or a "
            "library of `petzval data build`."
        ),
    ],
    into: Annotated[Path, typer.Option(help="Folder of the corpus; made if it is not there.")],
    form: Annotated[
        str | None, typer.Option(help=f"What SOURCE is: {', '.join(FORMS)}. [default: look]")
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the source, kept with each picture. [default: SOURCE's]")
    ] = "",
    scenes: Annotated[
        int, typer.Option(help="Scenes to draw from a library.", min=1, max=100_000_000)
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Series of scenes.", min=0)] = 0,
    base: Annotated[int, typer.Option(help="Base size of scenes in pixels.")] = 512,
    rows_per_part: Annotated[
        int, typer.Option(help="Pictures in a part of a new corpus.", min=1, max=1_000_000)
    ] = 2048,
) -> None:
    """Bring pictures and their captions into a corpus, each picture once.

    Importing again adds what is new, an interrupted import goes on. Prints the folder.
    """
    from petzval.data.corpus.importing import import_source
    from petzval.data.corpus.manifest import Corpus

    form = form or _form_of(source)
    if form == "scenes":
        from petzval.data.corpus.illustrations import SceneSource

        found: Source = SceneSource(source, num_scenes=scenes, seed=seed, base=base, name=name)
    else:
        found = _files(source, form, name)
    is_there = (into / "corpus.json").exists()
    corpus = (
        Corpus.open(into)
        if is_there
        else Corpus.create(into, into.absolute().name, rows_per_part=rows_per_part)
    )
    with stage_bars() as progress:
        done = import_source(corpus, found, progress=progress)
    console = stderr()
    console.print(
        f"{done.num_new:,} pictures are new, {done.num_present:,} were there, "
        f"{done.num_duplicates:,} are the same bytes as others",
        markup=False,
    )
    _show_refusals(corpus, found.name, done.refusals)
    print_line(corpus.folder)


def clean(
    corpus: Folder,
    engine: Engine = "local",
    workers: Workers = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="A step to run, with those it needs; repeatable.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Thresholds for: photographs, illustrations.")
    ] = "photographs",
    settings: Annotated[
        Path | None, typer.Option(help="JSON with settings that differ from the preset.")
    ] = None,
    nsfw_weights: Annotated[
        Path | None, typer.Option(help="Weights in place of the packaged ones.")
    ] = None,
    aesthetic_weights: Annotated[
        Path | None, typer.Option(help="Weights, .safetensors or .onnx; without, not run.")
    ] = None,
    watermark_weights: Annotated[
        Path | None, typer.Option(help="Weights, .safetensors or .onnx; without, not run.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the yields as JSON.")] = False,
) -> None:
    """Judge every picture by the nine cleaning steps and print what each step leaves.

    Done parts are not done again: an interrupted cleaning goes on where it stopped.
    """
    from petzval.data.corpus import clean as cleaning
    from petzval.data.corpus.manifest import Corpus

    weights = {
        "nsfw_weights": nsfw_weights,
        "aesthetic_weights": aesthetic_weights,
        "watermark_weights": watermark_weights,
    }
    given = {name: str(path) for name, path in weights.items() if path is not None}
    resolved = _settings(preset, settings, given)
    opened = Corpus.open(corpus)
    with stage_bars() as progress:
        left = cleaning.clean(
            opened, resolved, only=only or (), engine=engine, workers=workers,
            report=progress,
        )  # fmt: skip
    for step in left:
        if step.not_run:
            stderr().print(f"warning: {step.step} did {step.not_run}", markup=False, style="bold")
    if json:
        print_json([_as_json(step) for step in left])
    else:
        _print_yields(left)


def _form_of(source: Path) -> str:
    if source.is_file():
        forms = {".tar": "tars", ".parquet": "parquet"}
        if source.suffix in forms:
            return forms[source.suffix]
        raise RequestError(
            f"{source} is no source that is known by its name",
            f"expected a folder, .tar or .parquet; or say which with --form {'|'.join(FORMS)}",
        )
    if (source / "library.json").is_file():
        return "scenes"
    return "tars" if any(source.glob("*.tar")) else "folder"


def _files(source: Path, form: str, name: str) -> Source:
    from petzval.data.corpus.sources import FolderSource, ParquetSource, TarSource

    if form == "folder":
        return FolderSource(source, name)
    if form == "tars":
        return TarSource(source, name=name)
    if form == "parquet":
        return ParquetSource(source, name)
    raise RequestError(f"unknown form {form[:40]!r}", f"forms: {', '.join(FORMS)}")


def _show_refusals(corpus: Corpus, name: str, refusals: tuple[Refusal, ...]) -> None:
    for refusal in refusals[:NUM_SHOWN]:
        place = f"{refusal.path}: {refusal.member}" if refusal.member else refusal.path
        stderr().print(printable(f"refused: {place}: {refusal.reason}"), markup=False)
    if len(refusals) > NUM_SHOWN:
        listed = corpus.folder / "refusals" / f"{name}.json"
        stderr().print(f"{len(refusals):,} refused in all, listed in {listed}", markup=False)


def _settings(preset: str, path: Path | None, given: dict[str, str]) -> CleaningSettings:
    from petzval.config import from_mapping, read_json, to_mapping
    from petzval.data.corpus.clean import PRESETS, CleaningSettings

    if preset not in PRESETS:
        raise RequestError(f"unknown preset {preset[:40]!r}", f"presets: {', '.join(PRESETS)}")
    values = to_mapping(PRESETS[preset]())
    if path is not None:
        read = read_json(path)
        if not isinstance(read, dict):
            raise ConfigError(f"{path}: expected an object with settings")
        values |= read
    return from_mapping(CleaningSettings, values | given, where=str(path or "settings"))


def _as_json(step: Yield) -> dict[str, object]:
    return {
        "step": step.step,
        "in": step.num_in,
        "dropped": step.num_dropped,
        "left": step.num_left,
        "not_judged": step.num_not_judged,
        "not_run": step.not_run,
        "reasons": dict(step.reasons),
    }


def _print_yields(left: list[Yield]) -> None:
    from rich.table import Table

    table = Table("step", box=None)
    for heading in ("came", "dropped", "left", "of those that came"):
        table.add_column(heading, justify="right")
    table.add_column("most frequent reason")
    for step in left:
        reason = f"{step.reasons[0][0]} ({step.reasons[0][1]:,})" if step.reasons else ""
        numbers = [f"{step.num_in:,}", f"{step.num_dropped:,}", f"{step.num_left:,}"]
        share = "not run" if step.not_run else f"{step.share_left:.1%}"
        table.add_row(step.step, *numbers, share, printable(reason))
    print_table(table)
