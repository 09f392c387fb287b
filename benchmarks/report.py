"""Rows of results → benchmarks/report.md, and the short table in the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petzval.bench.table import fastest, table

CAVEATS = """\
# Benchmark report

Written by `make bench` from `benchmarks/results`; not edited by hand.

**Before you read the numbers.** Times are of the machine named in the row, which may be shared and
busy: they do not travel. Ratios do, since all ways of a case run in turn in the same process
(A B C A B C …) and the ratio is taken within each round. Median of all rounds; in brackets the
quartiles. Memory is the peak of the process that ran the whole case, all its ways together. The
networks have random weights of the size named: arithmetic does not depend on what was learnt.
*The original's way* is rebuilt from this project's slow parts (`src/petzval/bench/original.py`).
A *waterfall* draws whole pictures in every way; its difference is that of the final latents, in
norm. Its floor is the count of operations and bytes over this machine's ceilings, which a large
product and a large copy measured in the same run.
"""

REPRODUCE = """\
## How to reproduce

    make bench                                        # all cases, and the waterfalls
    .venv/bin/python -m benchmarks.waterfall --compile   # the waterfalls, compiled networks too
    .venv/bin/python -m benchmarks.runner guidance-one   # one of them

Every run appends its rows, with commit, machine and versions, to `benchmarks/results`; this page
shows the latest row of each case.
"""


def latest(folder: Path) -> list[dict[str, Any]]:
    """The newest row of each case and device, in the order of the cases' first appearance."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[row["case"], row["device"]] = row
    return list(rows.values())


def write(results: Path, report: Path) -> None:
    """Write the report from all rows in `results`."""
    parts = [CAVEATS]
    parts += [_waterfall(row) if "ways" in row else _section(row) for row in latest(results)]
    parts.append(REPRODUCE)
    report.write_text("\n".join(parts), encoding="utf-8")


def summary_table(results: Path) -> str:
    """One line a case: what, time, ratio to the slow reference, limit."""
    lines = ["| what | time | against the reference | limit |", "| --- | --: | --: | --- |"]
    for row in latest(results):
        if "ways" in row:
            lines.append(_waterfall_line(row))
            continue
        way = _ways(row)[-1]
        ratio = f"{row['ratios'][way]:.2f} x" if len(row["timings"]) > 1 else "–"
        seconds = _seconds(row["timings"][way]["median"])
        lines.append(f"| {row['title']} | {seconds} | {ratio} | {_limit(row)} |")
    return "\n".join(lines)


def _waterfall_line(row: dict[str, Any]) -> str:
    """The fastest exact way against the original's."""
    best = fastest(row["ways"])
    share = f"{100 * row['share_of_floor']:.0f} % of the floor"
    label = f"{row['title']} ({row['device']}{', extrapolated' if row['extrapolated'] else ''})"
    return f"| {label} | {_seconds(best['total_ms'] / 1000)} | {best['ratio']:.2f} x | {share} |"


def _waterfall(row: dict[str, Any]) -> str:
    lines = [f"## {row['case']}", "", f"{row['why'][0].upper()}{row['why'][1:]}.", "", table(row)]
    return "\n".join([*lines, "", _circumstances(row), ""])


def _circumstances(row: dict[str, Any]) -> str:
    machine = row["machine"]
    return (
        f"{row['date']}, commit {row['commit']}{' (changed)' if row['changed'] else ''}, "
        f"{machine['processor']}, {machine['cores']} cores, load {row['load']}, "
        f"torch {row['versions']['torch']}, {row['threads']} threads, {row['rounds']} rounds."
    )


def _ways(row: dict[str, Any]) -> list[str]:
    """From the reference to what the product runs, in the case's own order."""
    return list(row["timings"])


def _section(row: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {_number(value)}" for name, value in row["facts"].items())
    lines = [
        f"## {row['case']}: {row['title']}",
        "",
        f"{row['why'][0].upper()}{row['why'][1:]}.",
        "",
        "| way | seconds | times as fast |",
        "| --- | --: | --: |",
    ]
    for way in _ways(row):
        timing = row["timings"][way]
        spread = f"{timing['median']:.4f} ({timing['low']:.4f}–{timing['high']:.4f})"
        lines.append(f"| {way} | {spread} | {row['ratios'][way]:.2f} |")
    verdict = "met" if row["met"] else "**missed**"
    difference = row["difference"]
    lines += [
        "",
        f"Limit: {_limit(row)}, {verdict}. "
        + (f"Largest difference between the ways: {difference:.1e}. " if difference else "")
        + f"Peak memory {row['peak_mib']:.0f} MiB. {row['dtype']}"
        + (f"; {facts}." if facts else "."),
        "",
        _circumstances(row),
        "",
    ]
    return "\n".join(lines)


def _limit(row: dict[str, Any]) -> str:
    limits = row["limits"]
    if limits["max_seconds"] is not None:
        return f"at most {limits['max_seconds']:g} s"
    if limits["min_ratio"] is not None:
        return f"at least {limits['min_ratio']:g} x"
    return "none"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
