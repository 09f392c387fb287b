"""Whole pictures, technique by technique: `python -m benchmarks.waterfall`.

Measures every row of the published table that this machine's device can do, each by `petzval bench`
in a process of its own, appends them to benchmarks/results and writes benchmarks/report.md again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.runner import FOLDER, circumstances, keep

if TYPE_CHECKING:
    from petzval.bench.setting import Setting


def main(arguments: list[str] | None = None) -> int:
    """Returns the number of rows that could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waterfall", description=__doc__)
    parser.add_argument("case", nargs="*", help="names of rows; none means all of this device")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="compiled networks, too")
    parser.add_argument("--rounds", type=int, help="runs of each way after the warm-up")
    parser.add_argument("--dry-run", action="store_true", help="measure, keep nothing")
    options = parser.parse_args(arguments)

    from petzval.bench.setting import usual_settings
    from petzval.inference.device import choose_device

    known = {each.name: each for each in usual_settings(choose_device(options.device))}
    unknown = [name for name in options.case if name not in known]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; rows: {', '.join(known)}")
    failed = 0
    for name in options.case or known:
        row = _measure_apart(known[name], options.device, options.rounds, options.compile)
        if row is None:
            failed += 1
        elif not options.dry_run:
            keep([row])
    return failed


def command_of(
    setting: Setting, device: str, rounds: int | None = None, compile: bool = False
) -> list[str]:
    """The command that measures one row."""
    words: dict[str, Any] = {
        "model": setting.model,
        "size": f"{setting.width}x{setting.height}",
        "steps": setting.steps,
        "guidance": setting.guidance,
        "batch": setting.batch,
        "text-tokens": setting.text_tokens,
        "blocks": setting.blocks,
        "encoder-layers": setting.encoder_layers,
        "dtype": setting.dtype,
        "rounds": rounds or setting.rounds,
        "device": device,
    }
    options = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    flags = ["--compile"] if compile else []
    return [sys.executable, "-m", "petzval", "bench", "--json", *options, *flags]


def _measure_apart(
    setting: Setting, device: str, rounds: int | None, compile: bool
) -> dict[str, Any] | None:
    """A row with its circumstances; None, and a word on stderr, where the machine cannot do it."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    run = subprocess.run(
        command_of(setting, device, rounds, compile),
        stdout=subprocess.PIPE,
        check=False,
        cwd=Path(FOLDER).parent,
        env=environment,
    )
    if run.returncode != 0:
        print(f"{setting.name}: not measured, exit code {run.returncode}", file=sys.stderr)
        return None
    row = json.loads(run.stdout.splitlines()[-1]) | circumstances()
    for way in row["ways"]:
        line = f"{setting.name}  {way['total_ms']:10.1f} ms  {way['ratio']:6.2f} x  {way['name']}"
        print(line, file=sys.stderr)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
