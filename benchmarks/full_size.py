"""The complete full-size model on a CPU with little RAM: `python -m benchmarks.full_size FOLDER`.

Writes a checkpoint of the published size with random numbers to FOLDER (21 GB, removed at the end),
draws one picture in a process of its own that plans for --memory, and appends peak resident memory
and time to benchmarks/results as the row `full-size-cpu`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import write_random_checkpoint
from benchmarks.runner import circumstances, keep
from petzval.inference.placement import parse_bytes


def main() -> int:
    """Returns 1 where the limit was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder that is not there yet")
    parser.add_argument("--memory", default="12GB")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="measure, keep nothing")
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        write_random_checkpoint(options.folder)
        written = time.perf_counter() - start
        print(f"written in {written:.0f} s", file=sys.stderr)
        row = _row(options, _draw(options)) | circumstances()
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    if not options.dry_run:
        keep([row])
    print(json.dumps(row))
    return 0 if row["met"] else 1


def _draw(options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory_run", str(options.folder)]
    for name in ("memory", "size", "steps", "dtype", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return report


def _row(options: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    seconds = report["seconds"]
    way = {"median": seconds, "low": seconds, "high": seconds}
    return {
        "case": "full-size-cpu",
        "title": f"the whole full-size model on a CPU within {options.memory}, {options.size}",
        "why": "41.8 GB of weights as other programs hold them; here the files are mapped and "
        "streamed, planning included",
        "timings": {report["plan"]: way},
        "ratios": {report["plan"]: 1.0},
        "difference": None,
        "peak_mib": report["measured"] / 2**20,
        "met": report["measured"] <= parse_bytes(options.memory) and report["spread"] > 0,
        "dtype": options.dtype,
        "facts": {
            "steps": options.steps,
            "predicted MiB": round(report["predicted"] / 2**20),
            "predicted seconds": round(report["predicted_seconds"]),
            "measured seconds": round(report["measured_seconds"]),
            "planning s": round(report["planning"]),
            "loading s": round(report["load"]),
            **{f"{stage} s": round(time) for stage, time in report["stages"].items()},
        },
        "limits": {"min_ratio": None, "max_seconds": None},
        "rounds": 1,
        "threads": report["threads"],
        "device": "cpu",
    }


if __name__ == "__main__":
    raise SystemExit(main())
