"""`petzval verify`: is a checkpoint whole, and does it give here what it gave the original?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petzval.cli.console import print_json, print_line, printable

if TYPE_CHECKING:
    from petzval.inference.goldens.case import CaseResult
    from petzval.weights.verify import VerifyReport


def verify(
    checkpoint: Annotated[
        str, typer.Argument(help="A model's name, a checkpoint folder, or a part's file.")
    ],
    goldens: Annotated[
        Path | None, typer.Option(help="Folder of recorded tensors to compare with.")
    ] = None,
    hashes: Annotated[
        bool, typer.Option("--hashes/--no-hashes", help="Hash every file (reads all of it).")
    ] = True,
    values: Annotated[
        bool, typer.Option("--values/--no-values", help="Look for NaN and infinities, too.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check keys, shapes and dtypes of a checkpoint, or of a part of one, against the architecture.

    Counts and hashes, too. A part may be a file or folder of any format that is read.

    With --goldens, also run every recorded case and print its error and limit. Exits with 1 when
    anything is wrong or over its limit.
    """
    from dataclasses import replace

    from petzval.config import to_mapping
    from petzval.errors import RequestError
    from petzval.inference.parts import SUFFIX
    from petzval.inference.variants import VARIANTS, locate
    from petzval.weights.verify import verify_checkpoint, verify_component

    folder = locate(checkpoint).folder if checkpoint.lower() in VARIANTS else Path(checkpoint)
    if folder.is_file() and folder.suffix.lower() == SUFFIX:
        raise RequestError(
            f"{folder} names parts that lie in several places",
            f"verify each of them; or `petzval convert {folder} FOLDER`, and verify the folder",
        )
    if _is_one_part(folder):
        if goldens is not None:
            raise RequestError(f"{folder} is one part; goldens are of a whole checkpoint")
        report = verify_component(folder, hashes=hashes, values=values)
    else:
        report = verify_checkpoint(folder, hashes=hashes, values=values)
        report = replace(report, problems=(*report.problems, *_faults_of_texts(folder)))
    if not json:
        _print_report(report)
    cases = [] if goldens is None else list(_run(goldens, folder, quiet=json))
    if json:
        document = to_mapping(report) | {"passed": report.passed}
        # JSON has no infinity: an error without a number is null.
        rows = [
            to_mapping(case)
            | {"status": case.status, "error": case.error if isfinite(case.error) else None}
            for case in cases
        ]
        print_json(document | ({} if goldens is None else {"goldens": rows}))
    if not report.passed or any(case.status == "failed" for case in cases):
        raise typer.Exit(1)


def _is_one_part(path: Path) -> bool:
    """Whether a file, or a folder that has none of a checkpoint's own folders."""
    parts = ("transformer", "text_encoder", "vae", "tokenizer")
    if not path.is_dir():
        return path.exists()
    return any(path.iterdir()) and not any((path / name).is_dir() for name in parts)


def _faults_of_texts(folder: Path) -> list[str]:
    """What is wrong with the tokenizer and the card, which only a picture would read."""
    from petzval.conditioning.tokenizer import PromptTokenizer
    from petzval.errors import PetzvalError
    from petzval.inference.variants import locate
    from petzval.weights.published import TOKENIZER

    faults: list[str] = []
    # An absent tokenizer is among the problems of the folder.
    checks: list[Callable[[], object]] = [lambda: locate(folder)]
    if (folder / TOKENIZER / "tokenizer.json").is_file():
        checks.append(lambda: PromptTokenizer(folder / TOKENIZER))
    for check in checks:
        try:
            check()
        except PetzvalError as error:
            faults.append(error.message)
    return faults


def _run(goldens: Path, checkpoint: Path, *, quiet: bool) -> Iterator[CaseResult]:
    """Every recorded case, printed as soon as it is known."""
    from collections import Counter

    from petzval.inference.verify_goldens import iterate_goldens

    counts: Counter[str] = Counter()
    for case in iterate_goldens(goldens, checkpoint):
        counts[case.status] += 1
        if not quiet:
            numbers = f"{case.error:9.2e} of {case.limit:7.1e}" if not case.skipped else " " * 20
            line = f"{case.status:<9} {numbers}  {case.name}  {case.detail}"
            print_line(printable(line).rstrip())
        yield case
    if not quiet:
        print_line(", ".join(f"{count} {status}" for status, count in counts.items()))


def _print_report(report: VerifyReport) -> None:
    print_line(printable(str(report.folder)))
    for part in report.components:
        dtypes = ", ".join(f"{count} {name}" for name, count in part.dtypes)
        print_line(
            f"  {part.name}: {part.num_tensors:,} tensors ({dtypes}), "
            f"{part.num_parameters:,} numbers, {part.num_bytes:,} bytes"
        )
        for file in part.files:
            print_line(f"    {file.sha256 or '-'}  {file.num_bytes:,}  {printable(file.name)}")
        for problem in part.problems:
            print_line(f"    WRONG  {printable(problem)}")
    for problem in report.problems:
        print_line(f"  WRONG  {printable(problem)}")
    print_line("passed" if report.passed else "FAILED")
