"""`petzval data caption`: captions for a corpus, asked of an endpoint or taken from its sources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petzval.cli.console import print_json, print_line, stage_bars, stderr
from petzval.errors import RequestError

if TYPE_CHECKING:
    from petzval.data.corpus.captioner import Captioner
    from petzval.data.corpus.captions import CaptionRun
    from petzval.data.corpus.manifest import Corpus

CAPTIONERS = ("endpoint", "metadata")
MODES = ("dense", "brief", "mixed")


def caption(
    corpus: Annotated[Path, typer.Argument(help="Folder of the corpus; cleaned.")],
    by: Annotated[
        str,
        typer.Option(
            help="endpoint: the one that OPENAI_BASE_URL, OPENAI_API_KEY and "
            "PETZVAL_CAPTION_MODEL name; metadata: what the sources say."
        ),
    ] = "endpoint",
    mode: Annotated[
        str, typer.Option(help="dense, brief, or mixed: half of either, by a hash.")
    ] = "dense",
    concurrency: Annotated[int, typer.Option(help="Questions at a time.", min=1, max=4096)] = 8,
    budget_tokens: Annotated[
        int | None, typer.Option(help="Tokens to spend on this corpus, in all runs.", min=0)
    ] = None,
    budget_money: Annotated[
        float | None, typer.Option(help="Money to spend on it, in the prices' currency.", min=0)
    ] = None,
    prompt_price: Annotated[
        float, typer.Option(help="Of a million tokens of prompts.", min=0)
    ] = 0.0,
    completion_price: Annotated[
        float, typer.Option(help="Of a million tokens of answers.", min=0)
    ] = 0.0,
    max_side: Annotated[
        int, typer.Option(help="Longer side of the pictures that are sent.", min=64, max=4096)
    ] = 768,
    max_tokens: Annotated[int, typer.Option(help="Of an answer.", min=16, max=100_000)] = 900,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer.", min=1, max=3600)] = 120.0,
    attempts: Annotated[int, typer.Option(help="For one picture in a run.", min=1, max=100)] = 6,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Caption every picture that cleaning kept and that has no caption yet.

    Can be stopped at any time: the same command goes on, and no answer is paid for twice. Prints
    how many pictures there are of each outcome.
    """
    from petzval.data.corpus.captioner import MetadataCaptioner
    from petzval.data.corpus.captions import caption_corpus
    from petzval.data.corpus.manifest import Corpus

    if by not in CAPTIONERS:
        raise RequestError(f"unknown captioner {by[:40]!r}", f"known are {', '.join(CAPTIONERS)}")
    if mode not in MODES:
        raise RequestError(f"unknown mode {mode[:40]!r}", f"modes: {', '.join(MODES)}")
    opened = Corpus.open(corpus)
    captioner: Captioner = MetadataCaptioner()
    if by == "endpoint":
        limits = {
            "tokens": budget_tokens,
            "money": budget_money,
            "prompt_price": prompt_price,
            "completion_price": completion_price,
        }
        settings = {
            "max_side": max_side,
            "max_completion_tokens": max_tokens,
            "timeout": timeout,
            "max_attempts": attempts,
        }
        captioner = _endpoint(opened, limits, settings)
    with stage_bars() as progress:
        run = caption_corpus(
            opened, captioner, mode=mode, concurrency=concurrency, progress=progress
        )
    _show(run, json)


def _endpoint(
    corpus: Corpus, limits: dict[str, float | None], settings: dict[str, float]
) -> Captioner:
    from petzval.config import from_mapping
    from petzval.data.corpus.budget import Budget, BudgetLimits
    from petzval.data.corpus.captions import spent_so_far
    from petzval.data.corpus.endpoint import EndpointAddress, EndpointCaptioner, EndpointSettings

    return EndpointCaptioner(
        EndpointAddress.from_environment(),
        from_mapping(EndpointSettings, settings, where="caption"),
        Budget(from_mapping(BudgetLimits, limits, where="budget"), spent_so_far(corpus)),
    )


def _show(run: CaptionRun, json: bool) -> None:
    console = stderr()
    console.print(
        f"{run.num_asked:,} answers in this run; {sum(run.spent):,} tokens in all runs",
        markup=False,
    )
    if run.stopped:
        console.print("the budget allows no further question; raise it to go on", markup=False)
    if run.num_whole < run.num_parts:
        console.print(f"{run.num_whole:,} of {run.num_parts:,} parts are whole", markup=False)
    if json:
        print_json(
            {
                "counts": run.counts,
                "asked": run.num_asked,
                "tokens": {"prompt": run.spent[0], "completion": run.spent[1]},
                "parts": run.num_parts,
                "whole_parts": run.num_whole,
                "stopped": run.stopped,
            }
        )
        return
    for status, count in run.counts.items():
        print_line(f"{status:<12} {count:,}")
