"""Starting, stopping, being looked after."""

from __future__ import annotations

import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from petzval.errors import ServerError
from petzval.inference.engine import Engine
from petzval.server.app import create_app
from petzval.server.run import listen
from petzval.server.settings import Limits, ServerSettings
from petzval.server.store import Store
from tests.server.running import Running, running
from tests.server.scripted import ScriptedDrawer
from tests.support import until


def test_a_server_that_stops_finishes_its_picture_and_draws_the_rest_later(tmp_path: Path) -> None:
    drawer = ScriptedDrawer()
    drawer.gate.clear()
    with running(tmp_path, drawer) as studio:
        job = studio.submit(n=3, steps=5)
        until(lambda: drawer.drawn)
        with studio.client.stream("GET", "/v1/events") as stream:
            studio.server.stop()
            list(stream.iter_lines())  # ends, in place of holding the server up
        until(lambda: not studio.studio.engine.is_working)
    assert len(drawer.drawn) == 1
    with running(tmp_path) as studio:
        job = studio.wait(job["id"])
        assert job["status"] == "done" and [p["index"] for p in job["images"]] == [0, 1, 2]
        assert len(studio.drawer.drawn) == 2


def test_a_stopping_server_takes_no_jobs_and_is_not_ready(studio: Running) -> None:
    assert studio.client.get("/ready").status_code == 200
    studio.studio.jobs.draining = True
    answer = studio.client.post("/v1/jobs", json={"prompt": "x"})
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert studio.client.get("/ready").status_code == 503
    assert studio.client.get("/health").status_code == 200


def test_a_job_whose_model_is_gone_fails_after_the_restart(tmp_path: Path) -> None:
    drawer = ScriptedDrawer()
    drawer.gate.clear()
    with running(tmp_path, drawer) as studio:
        job = studio.submit()
        store = studio.studio.store
        with store.write() as session:
            row = session.get(type(store.unfinished()[0]), job["id"])
            assert row is not None
            row.request = row.request | {"model": "gone"}
            row.status = "queued"
        studio.server.stop()
        drawer.gate.set()
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database, database:
        database.execute("UPDATE jobs SET status = 'queued'")
        database.execute("DELETE FROM pictures")
    with running(tmp_path) as studio:
        failed = studio.wait(job["id"])
        assert failed["status"] == "failed" and failed["error"]["code"] == "model_not_found"


def test_metrics_count_and_tell_no_prompt(studio: Running) -> None:
    studio.wait(studio.submit(prompt="a private fox", n=2)["id"])
    studio.client.get("/v1/jobs/a-made-up-name")
    answer = studio.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    for line in (
        "petzval_jobs_accepted_total 1.0",
        'petzval_jobs_total{status="done"} 1.0',
        "petzval_pictures_total 2.0",
        "petzval_jobs_waiting 0.0",
    ):
        assert line in text
    assert re.search(r'petzval_request_seconds_count\{.*route="/v1/jobs".*status="202"\} 1', text)
    assert "fox" not in text and "made-up" not in text


def test_limits_are_those_of_the_key(tmp_path: Path) -> None:
    with running(tmp_path, keys=True) as studio:
        small = Limits(max_pictures=1, max_pixels=128 * 128, max_steps=4, jobs_per_minute=2.0)
        add = studio.studio.keys.add
        keys = {"small": add("small", small), "large": add("large")}

        def status(key: str, **body: object) -> tuple[int, str]:
            headers = {"Authorization": f"Bearer {keys[key]}"}
            answer = studio.client.post("/v1/jobs", json={"prompt": "x"} | body, headers=headers)
            error = answer.json()["error"] or {"code": ""}
            return answer.status_code, error["code"]

        for body in ({"n": 2}, {"size": "256x256"}, {"steps": 5}):
            assert status("small", **body) == (400, "limit_exceeded")
            assert status("large", **body) == (202, "")
        assert [status("small")[0] for _ in range(3)] == [202, 202, 429]
        assert status("small")[1] == "rate_limit_exceeded"
        assert status("large")[0] == 202


def test_what_has_no_room_counts_for_the_rate(tmp_path: Path) -> None:
    """To find it out takes time, which nobody may use up for nothing."""
    drawer = ScriptedDrawer()
    with running(tmp_path, drawer, limits=Limits(jobs_per_minute=3.0)) as studio:

        def status(key: str) -> int:
            headers = {"Idempotency-Key": key}
            return studio.client.post("/v1/jobs", json={"prompt": "x"}, headers=headers).status_code

        assert status("a") == 202
        drawer.most_tokens = 1
        assert [status("b"), status("b")] == [400, 400]
        assert status("b") == 429
        assert status("a") == 202  # the job that is there already


def test_one_caller_cannot_fill_the_queue(tmp_path: Path) -> None:
    drawer = ScriptedDrawer()
    drawer.gate.clear()
    with running(tmp_path, drawer, limits=Limits(max_waiting=2)) as studio:
        studio.submit()
        until(lambda: drawer.drawn)
        studio.submit()
        studio.submit()
        assert studio.client.post("/v1/jobs", json={"prompt": "x"}).status_code == 429


def test_ten_at_once_with_one_idempotency_key_are_one_job(studio: Running) -> None:
    ids: list[str] = []

    def ask() -> None:
        headers = {"Idempotency-Key": "k"}
        ids.append(
            studio.client.post("/v1/jobs", json={"prompt": "x"}, headers=headers).json()["id"]
        )

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 10 and len(set(ids)) == 1


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True)]
    + [("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("example.org", False)],
)
def test_keys_are_needed_off_this_machine(tmp_path: Path, host: str, local: bool) -> None:
    settings = ServerSettings(folder=tmp_path, host=host)
    assert settings.is_local is local and settings.needs_keys is not local


def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    with closing(listen(ServerSettings(folder=tmp_path, port=0))) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port}"):
            listen(ServerSettings(folder=tmp_path, port=port))


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ServerError, match="cannot be used"):
        Store(tmp_path / "file")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "jobs.sqlite").write_text("this is no database, but a text of some length")
    with pytest.raises(ServerError, match="as a database"):
        Store(tmp_path / "a")
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ServerError, match="schema 99"):
        create_app(ServerSettings(folder=tmp_path), Engine([ScriptedDrawer()]))


def test_two_servers_do_not_share_a_folder(studio: Running) -> None:
    settings = studio.studio.settings
    with pytest.raises(ServerError, match="another server uses"):
        create_app(settings, Engine([ScriptedDrawer()]))
    assert studio.studio.keys.add("while it runs").startswith("pz-")


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    Store(tmp_path / "studio").close()
    assert (tmp_path / "studio").stat().st_mode & 0o077 == 0
