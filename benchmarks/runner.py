"""Run benchmark cases: `python -m benchmarks.runner [case …]`.

Each case runs in a process of its own, so that its peak memory is its own. A table goes to stderr
for people, one JSON line a case is appended to benchmarks/results, benchmarks/report.md is written
again, and the last line of stdout is one JSON document with all rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 where a case misses its own limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runner", description=__doc__)
    parser.add_argument("case", nargs="*", help="names of cases; none means all")
    parser.add_argument("--rounds", type=int, help="runs of each way after the warm-up")
    parser.add_argument("--dry-run", action="store_true", help="measure, keep nothing")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    from benchmarks.cases import CASES

    known = {case.name: case for case in CASES}
    unknown = [name for name in options.case if name not in known]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; cases: {', '.join(known)}")
    if options.child:
        print(json.dumps(_measure_here(options.case[0], options.rounds)))
        return 0
    rows: list[dict[str, Any]] = []
    for name in options.case or known:
        rows.append(_measure_apart(name, options.rounds))
        if not options.dry_run:
            keep(rows[-1:])
    print(json.dumps(rows))
    return 0 if all(row["met"] for row in rows) else 1


def _measure_here(name: str, rounds: int | None) -> dict[str, Any]:
    import dataclasses

    import torch

    from benchmarks.cases import CASES
    from benchmarks.measure import measure

    case = next(case for case in CASES if case.name == name)
    if rounds is not None:
        case = dataclasses.replace(case, rounds=rounds)
    measured = measure(case)
    return {
        "case": name,
        "title": case.title,
        "why": case.why,
        **measured.as_row(),
        "limits": {"min_ratio": case.min_ratio, "max_seconds": case.max_seconds},
        "rounds": case.rounds,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _measure_apart(name: str, rounds: int | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.runner", "--child", name]
    if rounds is not None:
        command += ["--rounds", str(rounds)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # as the command line sets it
    run = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, cwd=FOLDER.parent, env=environment
    )
    row = json.loads(run.stdout.splitlines()[-1]) | circumstances()
    for way, timing in row["timings"].items():
        line = f"{name:16} {timing['median']:9.4f} s  {row['ratios'][way]:6.2f} x  {way}"
        print(line, file=sys.stderr)
    if not row["met"]:
        print(f"{name:16} misses its limit", file=sys.stderr)
    return row


def circumstances() -> dict[str, Any]:
    """Where and with what: the part of a row that says how far its times travel."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "changed": bool(_git("status", "--porcelain", "--", "src", "benchmarks/*.py")),
        "machine": {"processor": _processor(), "cores": os.cpu_count()},
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "petzval": version("petzval"),
        },
    }


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=FOLDER.parent)
    return run.stdout.strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def keep(rows: list[dict[str, Any]]) -> None:
    """Append rows to the results of their kind of device, and write the report again."""
    from benchmarks.report import write

    RESULTS.mkdir(exist_ok=True)
    for row in rows:
        kind = "cpu" if row["device"] == "cpu" else "gpu"
        with (RESULTS / f"{kind}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    write(RESULTS, FOLDER / "report.md")


if __name__ == "__main__":
    raise SystemExit(main())
