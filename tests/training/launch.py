"""Start the processes of a test with torchrun's environment, without each importing torch anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Leg = tuple[int, list[str], str]
"""Number of ranks, names of programs, and when one of the ranks dies ("never")."""


def launch(folder: Path, *legs: Leg, module: str = "tests.training.ranked") -> list[list[int]]:
    """Run legs of a module's programs one after the other; for each the exit codes of its ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    return json.loads(run_module(module, str(folder), json.dumps(legs)).splitlines()[-1])


def run_module(module: str, *words: str) -> str:
    """Run a module of the tests in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def logs(folder: Path) -> str:
    """What the ranks printed, for the message of a failed assertion."""
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("rank*.log")))
