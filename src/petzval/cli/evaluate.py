"""`petzval evaluate`: how well a model follows prompts, with intervals and chance levels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petzval.cli import options
from petzval.cli.console import plain_warnings, print_json, print_line, stage_bars, stderr

if TYPE_CHECKING:
    from petzval.evals.summary import Line


def evaluate(
    model: Annotated[
        str, typer.Option(help="Model by name, or checkpoint folder.")
    ] = options.DEFAULT_MODEL,
    out: Annotated[
        Path, typer.Option(help="Folder of pictures and scores; what is in it is used again.")
    ] = Path("build/evaluation"),
    page: Annotated[
        Path | None, typer.Option(help="Write the report here, a Markdown page and its pictures.")
    ] = None,
    languages: Annotated[
        str, typer.Option(help="Codes with commas between; the first is asked in full.")
    ] = "en,zh,fr,ja,es,de",
    limit: Annotated[
        int | None, typer.Option(help="Prompts of the first language. [default: all]", min=1)
    ] = None,
    limit_others: Annotated[int, typer.Option(help="Prompts of each other language.", min=1)] = 70,
    num: Annotated[int, typer.Option(help="Pictures per prompt.", min=1, max=64)] = 1,
    seed: Annotated[int, typer.Option(help="Of each prompt's first picture.", min=0)] = 0,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT. [default: the model's]")] = None,
    steps: Annotated[int | None, typer.Option(help="[default: the model's]")] = None,
    guidance: Annotated[float | None, typer.Option(help="[default: the model's]")] = None,
    minimum: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if a smaller share of pictures is right.", min=0, max=1),
    ] = None,
    device: options.Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the shares as JSON.")] = False,
) -> None:
    """Measure how well a model follows held-out prompts, by skill and by language.

    Prints the share of pictures judged right, its 95 % interval and the chance level. Can be
    stopped at any time: the same command goes on.
    """
    from petzval.evals import run
    from petzval.evals.report import first_language, write_report
    from petzval.evals.summary import by_skill, select

    with plain_warnings(), stage_bars() as progress:
        evaluation = run.evaluate(
            model,
            out=out,
            languages=[code.strip() for code in languages.split(",") if code.strip()],
            limit=limit,
            limit_others=limit_others,
            num_images=num,
            seed=seed,
            size=size,
            steps=steps,
            guidance=guidance,
            device=device,
            progress=progress,
        )
    if page is not None:
        stderr().print(f"report: {write_report(evaluation, page)}", markup=False)
    codes = dict.fromkeys(row.language for row in evaluation.rows)
    shares = {code: by_skill(select(evaluation.rows, language=code)) for code in codes}
    _print_document(evaluation.model, shares) if json else _print_tables(shares)
    right = shares[first_language(evaluation)][-1].share.mean
    if minimum is not None and right < minimum:
        stderr().print(f"{right:.1%} of the pictures are right, {minimum:.1%} are asked for")
        raise typer.Exit(1)


def _print_document(model: str, shares: dict[str, list[Line]]) -> None:
    tables = {code: [_as_json(line) for line in lines] for code, lines in shares.items()}
    print_json({"model": model, "shares": tables})


def _as_json(line: Line) -> dict[str, Any]:
    share = line.share
    return {
        "name": line.name,
        "right": share.mean,
        "low": share.low,
        "high": share.high,
        "pictures": share.num_values,
        "chance": line.chance,
    }


def _print_tables(shares: dict[str, list[Line]]) -> None:
    for code, lines in shares.items():
        print_line(code)
        for line in lines:
            share = line.share
            print_line(
                f"  {line.name:<12} {share.mean:6.1%}  [{share.low:6.1%}, {share.high:6.1%}]"
                f"  chance {line.chance:6.1%}  {share.num_values} pictures"
            )
