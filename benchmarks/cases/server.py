"""The server: what it costs beside the bare pipeline, and 64 clients for two minutes."""

from __future__ import annotations

import atexit
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Prepared

NUM_PICTURES = 6
CLIENTS = 64
LOAD_SECONDS = float(os.environ.get("PETZVAL_LOAD_SECONDS", "120"))
_WARM_SECONDS = 5.0
_SIZE, _STEPS = "256x256", 20
_SMALL, _FEW = "128x128", 2
_PROMPT = "a red apple on a white background"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Served:
    """A `petzval serve` of mini on one thread, in a process of its own."""

    url: str
    pid: int

    def client(self) -> Any:
        """An HTTP client of it."""
        import httpx2

        return httpx2.Client(base_url=self.url, timeout=120, trust_env=False)

    def processor_seconds(self) -> float:
        """What the process has used, all its threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rsplit(") ", 1)[1]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        """Memory of the process now."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the server is gone")


def _start() -> Served:
    """Start the server; it is stopped when this process ends."""
    folder = tempfile.mkdtemp(prefix="petzval-benchmark-")
    command = [sys.executable, "-m", "petzval", "serve", "--port", "0", "--data", folder]
    process = subprocess.Popen(
        [*command, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    atexit.register(process.terminate)
    assert process.stdout is not None
    return Served(url=process.stdout.readline().strip(), pid=process.pid)


def prepare_overhead() -> Prepared:
    """The same pictures by the pipeline in this process and by a server with four clients."""
    from petzval.inference.pipeline import load

    mini = load("mini", device="cpu")
    served = _start()
    client = served.client()

    facts: dict[str, float | str] = {"pictures": NUM_PICTURES, "size": _SIZE, "steps": _STEPS}

    def alone() -> None:
        began = time.process_time()
        for seed in range(NUM_PICTURES):
            [picture] = mini.generate(_PROMPT, seed=seed, size=_SIZE, steps=_STEPS)
            assert picture.encode("png")
        facts["processor s, pipeline"] = round(time.process_time() - began, 2)

    def one(seed: int) -> None:
        own = {"seed": seed, "steps": _STEPS}
        body = {"prompt": _PROMPT, "size": _SIZE, "petzval": own}
        answer = client.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text

    def over_http() -> None:
        began = served.processor_seconds()
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(one, range(NUM_PICTURES)))
        facts["processor s, server"] = round(served.processor_seconds() - began, 2)

    return Prepared(
        ways={"the pipeline, encoded as PNG": alone, "OpenAI's API, four clients": over_http},
        dtype="float32",
        facts=facts,
    )


@dataclass(kw_only=True, slots=True, eq=False)
class _Tally:
    """What all clients saw."""

    accepted: list[str] = field(default_factory=list[str])
    seconds: list[float] = field(default_factory=list[float])
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def prepare_load() -> Prepared:
    """Clients that ask, wait for the picture, and ask again; the server's memory on the way."""
    served = _start()
    facts: dict[str, float | str] = {"clients": CLIENTS, "size": _SMALL, "steps": _FEW}
    seconds = iter([_WARM_SECONDS])

    def load() -> None:
        duration = next(seconds, LOAD_SECONDS)
        before = served.resident_mib()
        tally = _Tally()
        end = time.monotonic() + duration
        threads = [
            threading.Thread(target=_client, args=(served, tally, end)) for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _check(served, tally)
        cuts = statistics.quantiles(tally.seconds, n=100)
        facts.update(
            {
                "seconds": duration,
                "jobs": len(tally.accepted),
                "refused": tally.refused,
                "jobs a second": round(len(tally.accepted) / duration, 2),
                "p50 s": round(cuts[49], 3),
                "p95 s": round(cuts[94], 3),
                "p99 s": round(cuts[98], 3),
                "MiB before": round(before, 1),
                "MiB after": round(served.resident_mib(), 1),
            }
        )

    return Prepared(ways={"64 clients over HTTP": load}, dtype="float32", facts=facts)


def _client(served: Served, tally: _Tally, end: float) -> None:
    with served.client() as client:
        while time.monotonic() < end:
            began = time.monotonic()
            body = {"prompt": _PROMPT, "size": _SMALL, "steps": _FEW}
            answer = client.post("/v1/jobs", json=body)
            if answer.status_code == 429:
                with tally.lock:
                    tally.refused += 1
                time.sleep(float(answer.headers["retry-after"]))
                continue
            assert answer.status_code == 202, answer.text
            id = answer.json()["id"]
            ends = 0
            with client.stream("GET", f"/v1/jobs/{id}/events") as stream:
                for line in stream.iter_lines():
                    ends += line == "event: end"
            assert ends == 1
            with tally.lock:
                tally.accepted.append(id)
                tally.seconds.append(time.monotonic() - began)


def _check(served: Served, tally: _Tally) -> None:
    """Every accepted job has one picture, and there are no others."""
    assert len(set(tally.accepted)) == len(tally.accepted)
    with served.client() as client:
        for id in tally.accepted:
            job = client.get(f"/v1/jobs/{id}").json()
            assert job["status"] == "done" and len(job["images"]) == 1, job


CASES = (
    Case(
        name="server-overhead",
        title=f"{NUM_PICTURES} pictures of mini, 256 x 256, by the pipeline and over HTTP",
        why="jobs on the disk, events, files and HTTP run beside the drawing and must not slow it: "
        "the server draws at least 95 % as fast as the bare pipeline",
        prepare=prepare_overhead,
        rounds=3,
        min_ratio=0.95,
        threads=1,
    ),
    Case(
        name="server-load",
        title=f"{CLIENTS} clients for two minutes, small pictures of mini",
        why="every accepted job is answered once, waiting is fair, and memory stays flat",
        prepare=prepare_load,
        rounds=1,
        threads=1,
    ),
)
