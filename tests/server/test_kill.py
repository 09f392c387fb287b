"""`kill -9` at random moments under load: no accepted job and no finished picture is lost.

`PETZVAL_KILLS=100` kills that often; the suite does so a few times.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.server.killable import killable
from tests.support import PATIENCE, until

KILLS = int(os.environ.get("PETZVAL_KILLS", "3"))
_STEP_SECONDS = 0.004
_NO_END_SECONDS = 3600.0


@dataclass(kw_only=True, eq=False)
class _Seen:
    """What clients were told, and may rely on."""

    jobs: dict[str, str] = field(default_factory=dict[str, str])
    pictures: dict[str, str] = field(default_factory=dict[str, str])
    keys: list[str] = field(default_factory=list[str])


def _load(url: str, seen: _Seen, stop: threading.Event, rng: random.Random) -> None:
    """Ask for jobs, ask again for those that were not answered, look at pictures; until killed."""
    with (
        suppress(httpx2.HTTPError),
        httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client,
    ):
        for key in [key for key in seen.keys if key not in seen.jobs]:
            _ask(client, key, seen)
        while not stop.is_set():
            key = f"key-{len(seen.keys)}-{rng.random()}"
            seen.keys.append(key)
            _ask(client, key, seen)
            for picture in client.get("/v1/pictures", params={"limit": 3}).json()["data"]:
                content = client.get(picture["url"]).content
                seen.pictures[picture["id"]] = hashlib.sha256(content).hexdigest()


def _ask(client: httpx2.Client, key: str, seen: _Seen) -> None:
    body = {"prompt": "a fox", "n": 2, "steps": 2, "size": "128x128"}
    answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
    if answer.status_code == 429:
        time.sleep(0.05)
        return
    assert answer.status_code == 202, answer.text
    assert seen.jobs.setdefault(key, answer.json()["id"]) == answer.json()["id"]


def _ended(client: httpx2.Client, id: str) -> dict[str, Any]:
    def job() -> dict[str, Any]:
        return client.get(f"/v1/jobs/{id}").json()

    until(lambda: job()["status"] not in ("queued", "running"))
    return job()


def test_kill_minus_nine_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(20)
    seen = _Seen()
    for kill in range(1, KILLS + 1):
        stop = threading.Event()
        seconds = _STEP_SECONDS if kill < KILLS else _NO_END_SECONDS
        with killable(tmp_path, seconds=seconds) as server:
            load = threading.Thread(target=_load, args=(server.url, seen, stop, rng))
            before = len(seen.jobs)
            load.start()
            until(lambda: len(seen.jobs) > before or not load.is_alive())  # noqa: B023
            time.sleep(rng.uniform(0, 0.2))
        stop.set()
        load.join()
    assert len(seen.jobs) >= KILLS
    assert _unfinished(tmp_path), "the last kill came in the middle of work"
    with (
        killable(tmp_path, seconds=0.0) as server,
        httpx2.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client,
    ):
        for id in seen.jobs.values():
            job = _ended(client, id)
            assert job["status"] == "done"
            assert [picture["index"] for picture in job["images"]] == [0, 1]
            first = job["request"]["seed"]
            assert [picture["seed"] for picture in job["images"]] == [first, first + 1]
        for id, digest in seen.pictures.items():
            content = client.get(f"/v1/pictures/{id}/file").content
            assert hashlib.sha256(content).hexdigest() == digest
    _check_folder(tmp_path)


def _unfinished(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "jobs.sqlite")) as database:
        wanted = "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')"
        return database.execute(wanted).fetchone()[0]


def _check_folder(folder: Path) -> None:
    """The database is sound, and every row has its files and every file its row."""
    with closing(sqlite3.connect(folder / "jobs.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = {row[0] for row in database.execute("SELECT id FROM pictures")}
        twice = "SELECT count(*) - count(DISTINCT idempotency_key) FROM jobs"
        assert database.execute(twice).fetchone() == (0,)
    files = {path.name for path in (folder / "pictures").iterdir()}
    assert files >= {f"{id}.png" for id in rows}
    assert files <= {f"{id}{suffix}" for id in rows for suffix in (".png", ".webp")}
