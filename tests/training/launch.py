"""Start the processes of a test as torchrun would, without its own start-up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch(size: int, folder: Path, *programs: str, kill: str = "never") -> list[int]:
    """Run programs of `tests.training.ranked` on `size` ranks; the ranks' exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []
    for rank in range(size):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "OMP_NUM_THREADS": "1",
            "PETZVAL_TEST_KILL": kill,
        }
        with (folder / f"rank{rank}.log").open("wb") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.training.ranked", str(folder), *programs],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        return [process.wait(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()


def logs(folder: Path) -> str:
    """What the ranks printed, for the message of a failed assertion."""
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("rank*.log")))
