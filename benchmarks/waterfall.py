"""Whole pictures, technique by technique: `python -m benchmarks.waterfall`.

Measures every row of the published table that this machine's device can do, each by `petzval bench`
in a process of its own, appends them to benchmarks/results and writes benchmarks/report.md again. A
row that fails takes no other with it. With `--seconds` the whole ends in time: rows come in the
order of the table, each gets a share of what is left, long schedules in batches draw four steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.runner import FOLDER, circumstances, keep

if TYPE_CHECKING:
    from petzval.bench.setting import Setting

_STEPS_IN_HASTE = 4
"""Of a long schedule in a batch, where time is short; the rest is extrapolated."""

_START_SECONDS = 20.0
"""To start a process and to make the networks: kept from a row's time."""

_LEAST_SECONDS = 15.0


def main(arguments: list[str] | None = None) -> int:
    """Returns the number of rows that could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waterfall", description=__doc__)
    parser.add_argument("case", nargs="*", help="names of rows; none means all of this device")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="compiled networks, too")
    parser.add_argument("--rounds", type=int, help="runs of each way after the warm-up")
    parser.add_argument(
        "--seconds", type=float, help="for all rows together, whatever hangs; 480 do for a GPU"
    )
    parser.add_argument("--dry-run", action="store_true", help="measure, keep nothing")
    options = parser.parse_args(arguments)

    from petzval.bench.setting import usual_settings
    from petzval.inference.device import choose_device

    known = {each.name: each for each in usual_settings(choose_device(options.device))}
    unknown = [name for name in options.case if name not in known]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; rows: {', '.join(known)}")
    failed = 0
    end = None if options.seconds is None else time.monotonic() + options.seconds
    names = list(options.case or known)
    for number, name in enumerate(names):
        setting, share = known[name], None
        if end is not None:
            # Twice an even share: the first rows matter most, and the very first compiles kernels.
            share = 2 * (end - time.monotonic()) / (len(names) - number + 1)
            setting = in_haste(setting)
            if share < _LEAST_SECONDS:
                print(f"{name}: not measured, no time was left", file=sys.stderr)
                failed += 1
                continue
        row = _measure_apart(setting, options.device, options.rounds, options.compile, share, end)
        if row is None:
            failed += 1
        elif not options.dry_run:
            keep([row])
    return failed


def in_haste(setting: Setting) -> Setting:
    """The same row, the first steps only where the whole takes minutes; labelled as such."""
    if setting.batch > 1 and setting.steps > _STEPS_IN_HASTE:
        return replace(setting, steps_measured=_STEPS_IN_HASTE)
    return setting


def command_of(
    setting: Setting,
    device: str,
    rounds: int | None = None,
    compile: bool = False,
    seconds: float | None = None,
) -> list[str]:
    """The command that measures one row; `seconds` as `petzval bench` takes them."""
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
        "steps-measured": setting.steps_measured,
        "rounds": rounds or setting.rounds,
        "device": device,
    }
    options = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    flags = ["--compile"] if compile else []
    flags += [] if seconds is None else ["--seconds", f"{seconds:.0f}"]
    return [sys.executable, "-m", "petzval", "bench", "--json", *options, *flags]


def _measure_apart(
    setting: Setting,
    device: str,
    rounds: int | None,
    compile: bool,
    share: float | None = None,
    end: float | None = None,
) -> dict[str, Any] | None:
    """A row with its circumstances; None, and a word on stderr, where it could not be measured.

    Args:
        share: seconds after which the row begins nothing new.
        end: moment, as `time.monotonic` counts, at which it is given up.
    """
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    seconds = None if share is None else max(1.0, share - _START_SECONDS)
    try:
        run = subprocess.run(
            command_of(setting, device, rounds, compile, seconds),
            stdout=subprocess.PIPE,
            check=False,
            cwd=Path(FOLDER).parent,
            env=environment,
            timeout=None if end is None else max(1.0, end - time.monotonic()),
        )
    except subprocess.TimeoutExpired:
        print(f"{setting.name}: not measured, the time was up", file=sys.stderr)
        return None
    if run.returncode != 0:
        print(f"{setting.name}: not measured, exit code {run.returncode}", file=sys.stderr)
        return None
    row = json.loads(run.stdout.splitlines()[-1]) | circumstances()
    for way in row["ways"]:
        line = f"{setting.name}  {way['total_ms']:10.1f} ms  {way['ratio']:6.2f} x  {way['name']}"
        print(line, file=sys.stderr)
    for name, why in row["failed"].items():
        print(f"{setting.name}: without {name}: {why}", file=sys.stderr)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
