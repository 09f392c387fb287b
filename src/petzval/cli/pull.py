"""`petzval pull`: fetch weights from a mirror, with their licence shown first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petzval.cli.console import print_json, print_line, print_table, printable, stderr

if TYPE_CHECKING:
    from petzval.weights.pull import Pulled, PullPlan
    from petzval.weights.registry import Mirror

_PROOFS = {
    "registry": "proven by a hash that is known beforehand",
    "repository": "held to the hash that the repository lists",
    "none": "without a hash to hold them to",
}


def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="What to fetch; without a name, what there is.", show_default=False),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask whether the licence is accepted.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no server: check what is here, or copy it.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A plain folder in place of the shared cache.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Another server of the hub's kind. [default: HF_ENDPOINT]")
    ] = None,
    workers: Annotated[int, typer.Option(help="Files at a time.", min=1, max=32)] = 4,
    json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
) -> None:
    """Fetch weights from a mirror into Hugging Face's cache: resumable, proven, parallel.

    Prints the folder, or the file of a mirror that holds one. HF_TOKEN, HTTPS_PROXY, HF_HOME and
    HF_HUB_OFFLINE are heeded.
    """
    from petzval.weights.registry import find_mirror, mirrors

    if not names:
        _print_list(list(mirrors().values()), json)
        return
    from petzval.weights.pull import fetch, plan_pull

    chosen = [find_mirror(name) for name in dict.fromkeys(names)]
    plans = [plan_pull(mirror, endpoint=endpoint, offline=offline) for mirror in chosen]
    for plan in plans:
        _show(plan)
    _ask(plans, yes)
    for plan in plans:
        with _bar(plan) as progress:
            pulled = fetch(plan, out=out, progress=progress, num_workers=workers)
        _print_result(plan, pulled, json)


def _show(plan: PullPlan) -> None:
    """What will be fetched, from whom, under which licence, and what proves it."""
    mirror, console = plan.mirror, stderr()
    lines = [
        f"{mirror.name}: {mirror.title}",
        f"  from     {mirror.repository}, commit {plan.commit[:12]}",
        f"           {mirror.provenance}",
    ]
    for licence in mirror.licences:
        lines.append(f"  licence  {licence.part}: {licence.name}")
        lines.append(f"           ({licence.source})")
    for proof, words in _PROOFS.items():
        files = [planned.file for planned in plan.files if planned.proof == proof]
        if files:
            size = _size(sum(file.num_bytes for file in files))
            lines.append(f"  files    {len(files)}, {size}, {words}")
    for line in lines:
        console.print(printable(line), markup=False)


def _ask(plans: Sequence[PullPlan], yes: bool) -> None:
    """Have the licences accepted by a person, or by --yes; checking what is here needs neither.

    Raises:
        RequestError: nobody is there to ask, or the answer is no.
    """
    from petzval.errors import RequestError

    if yes or all(plan.repository is None for plan in plans):
        return
    # A process may be started without a stdin at all.
    if sys.stdin is None or not sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        raise RequestError(
            "nobody can be asked whether the licence is accepted", "read it above, then add --yes"
        )
    size = _size(sum(plan.num_bytes for plan in plans))
    if not typer.confirm(f"fetch {size} under these licences?", err=True):
        raise RequestError("nothing was fetched", "")


@contextmanager
def _bar(plan: PullPlan) -> Generator[Callable[[int], None]]:
    """Bytes, speed and time on stderr."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr()) as progress:
        task = progress.add_task(plan.mirror.name, total=plan.num_bytes)
        yield lambda number: progress.advance(task, number)


def _print_result(plan: PullPlan, pulled: Pulled, json: bool) -> None:
    files = [planned.file for planned in plan.files]
    if json:
        print_json(
            {
                "name": plan.mirror.name,
                "folder": str(pulled.folder),
                "files": [str(path) for path in pulled.files],
                "commit": plan.commit,
                "num_bytes": plan.num_bytes,
                "proof": {planned.file.path: planned.proof for planned in plan.files},
            }
        )
    else:
        print_line(pulled.files[0] if len(files) == 1 else pulled.folder)


def _print_list(mirrors: Sequence[Mirror], json: bool) -> None:
    from petzval.config import to_mapping
    from petzval.weights.hub_cache import pulled_folder

    if json:
        rows = [to_mapping(mirror) | {"folder": _text(pulled_folder(mirror))} for mirror in mirrors]
        print_json(rows)
        return
    from rich.table import Table

    table = Table("name", "what", "size", "licence", "from", "here", box=None)
    for mirror in mirrors:
        size = "?" if mirror.approximate_bytes is None else f"~{_size(mirror.approximate_bytes)}"
        licences = "; ".join(licence.name.partition(",")[0] for licence in mirror.licences)
        here = "yes" if pulled_folder(mirror) else ""
        table.add_row(mirror.name, mirror.title, size, licences, mirror.repository, here)
    print_table(table)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _size(num_bytes: int) -> str:
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= divisor:
            return f"{num_bytes / divisor:.1f} {unit}"
    return f"{num_bytes} bytes"
