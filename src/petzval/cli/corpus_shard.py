"""`petzval data shard`, `card` and `text`: what a corpus is turned into, and texts drawn for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from petzval.cli.console import print_line, printable, stage_bars, stderr
from petzval.errors import RequestError

MEGABYTE = 1_000_000

Folder = Annotated[Path, typer.Argument(help="Folder of the corpus.")]


def shard(
    corpus: Folder,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the shards. [default: CORPUS/shards]")
    ] = None,
    bases: Annotated[
        str, typer.Option(help="Base sizes of the buckets, with commas between.")
    ] = "512,768,1024",
    max_upscale: Annotated[
        float, typer.Option(help="How far pictures may be enlarged for more area.", min=1, max=16)
    ] = 1.0,
    captions: Annotated[
        str, typer.Option(help="dense, brief, mixed, or source: as imported. [default: what is]")
    ] = "",
    target_size: Annotated[
        float, typer.Option(help="Megabytes of a shard, about.", min=0.01, max=1e6)
    ] = 1000.0,
    form: Annotated[str, typer.Option(help="Of the pictures: jpeg, png, webp.")] = "jpeg",
    quality: Annotated[int, typer.Option(help="Of jpeg and webp.", min=1, max=100)] = 95,
    held_out: Annotated[
        float, typer.Option(help="Share of the clusters that is held out.", min=0, max=1)
    ] = 0.005,
    engine: Annotated[
        str,
        typer.Option(help="local: processes here; ray: the cluster of RAY_ADDRESS, or one here."),
    ] = "local",
    workers: Annotated[int, typer.Option(help="Shards written at a time.", min=1)] = 1,
) -> None:
    """Crop and scale every kept, captioned picture to its bucket and write training shards.

    Can be stopped at any time: the same command goes on, and the bytes are the same. Prints the
    folder.
    """
    from petzval.config import from_mapping
    from petzval.data.corpus.buckets import Buckets, BucketSettings
    from petzval.data.corpus.manifest import Corpus
    from petzval.data.corpus.shard_plan import ShardSettings, caption_stage
    from petzval.data.corpus.shards import write_shards
    from petzval.data.corpus.split import Split, SplitSettings
    from petzval.data.corpus.stages import run_corpus_stage, run_stage

    values: dict[str, Any] = {
        "target_bytes": round(target_size * MEGABYTE),
        "captions": captions,
        "files": {"form": form, "quality": quality},
    }
    settings = from_mapping(ShardSettings, values, where="shard")
    sizes = BucketSettings(bases=_numbers(bases), max_upscale=max_upscale)
    opened = Corpus.open(corpus)
    with stage_bars() as progress:
        run_stage(opened, Buckets(settings=sizes), report=progress)
        split = Split(settings=SplitSettings(share=held_out))
        run_corpus_stage(opened, split, report=progress)
        caption_stage(opened, captions)
        folder = out or opened.folder / "shards"
        run = write_shards(
            opened, folder, settings, engine=engine, workers=workers, report=progress
        )
    console = stderr()
    console.print(
        f"{run.num_samples:,} samples in {run.num_shards:,} shards, {run.num_bytes:,} bytes; "
        f"{run.num_written:,} shards written by this run",
        markup=False,
    )
    for reason, count in sorted(run.left_out.items()):
        console.print(f"left out: {count:,} {reason}", markup=False)
    print_line(folder)


def card(
    corpus: Folder,
    out: Annotated[
        Path | None, typer.Option(help="Markdown page. [default: CORPUS/card.md]")
    ] = None,
) -> None:
    """Write a data card: yields, buckets, captions, crop loss, sources and licences.

    A Markdown page with its pictures beside it; says what has not run. Prints the page.
    """
    from petzval.data.corpus.card import write_card
    from petzval.data.corpus.manifest import Corpus

    print_line(write_card(Corpus.open(corpus), out))


def text(
    out: Annotated[Path, typer.Argument(help="Folder of the pictures; new, or of this series.")],
    num: Annotated[int, typer.Option(help="Pictures.", min=1, max=10_000_000)] = 100,
    seed: Annotated[int, typer.Option(help="Names the series.", min=0)] = 0,
    base: Annotated[int, typer.Option(help="Edge of the square of their area.")] = 512,
    max_words: Annotated[int, typer.Option(help="Of one picture.", min=1, max=40)] = 6,
    max_rotation: Annotated[float, typer.Option(help="In degrees.", min=0, max=180)] = 35.0,
    max_blur: Annotated[
        float, typer.Option(help="As a share of the letters' height.", min=0, max=0.5)
    ] = 0.06,
    fonts: Annotated[Path | None, typer.Option(help="Folder of more .ttf and .otf files.")] = None,
    strings: Annotated[
        Path | None, typer.Option(help="Strings to set, one a line, for the built-in words.")
    ] = None,
) -> None:
    """Draw words on backgrounds, with captions and the whole truth about each picture beside it.

    `petzval data import` reads the folder. The same command goes on with more pictures. Prints the
    folder.
    """
    from petzval.data.corpus.rendered_text import TextSettings
    from petzval.data.corpus.text_pictures import read_strings, write_texts

    settings = TextSettings(
        seed=seed, base=base, max_words=max_words, max_rotation=max_rotation, max_blur=max_blur
    )
    chosen = read_strings(strings) if strings is not None else ()
    with stage_bars() as progress:
        left_out = write_texts(out, num, settings, fonts=fonts, strings=chosen, progress=progress)
    if left_out:
        stderr().print(
            f"no font covers the words of: {', '.join(left_out)}; --fonts names a folder of more",
            markup=False,
        )
    print_line(out)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(",") if each.strip())
    except ValueError:
        raise RequestError(
            f"cannot read the base sizes {printable(text[:40])!r}",
            "numbers with commas between, such as 512,768,1024",
        ) from None
