from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from petzval.errors import PlacementError
from petzval.inference.image import read_recipe
from tests.server.running import Running, running
from tests.server.scripted import ScriptedDrawer
from tests.support import until


def events(studio: Running, path: str, **headers: str) -> list[tuple[str, dict[str, Any], str]]:
    """All server-sent events up to the first `end`: kind, data, id."""
    found: list[tuple[str, dict[str, Any], str]] = []
    kind = id = ""
    with studio.client.stream("GET", path, headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                id = value
            elif name == "event":
                kind = value
            elif name == "data":
                found.append((kind, json.loads(value), id))
                if kind == "end":
                    break
    return found


def test_a_job_becomes_pictures_with_their_recipes(studio: Running, tmp_path: Path) -> None:
    job = studio.submit(prompt="a red fox", n=2, seed=7, steps=3, size="128x96")
    assert job["status"] == "queued" and job["request"]["seed"] == 7
    job = studio.wait(job["id"])
    assert job["status"] == "done"
    assert [picture["seed"] for picture in job["images"]] == [7, 8]
    assert job["created"] <= job["started"] <= job["finished"]
    answer = studio.client.get(job["images"][1]["url"])
    assert answer.headers["content-type"] == "image/png"
    (tmp_path / "x.png").write_bytes(answer.content)
    recipe = read_recipe(tmp_path / "x.png")
    assert (recipe.seed, recipe.steps, recipe.width, recipe.height) == (8, 3, 128, 96)
    assert Image.open(io.BytesIO(answer.content)).getpixel((5, 5)) == (8, 8, 8)
    thumbnail = studio.client.get(job["images"][1]["thumbnail_url"])
    assert Image.open(io.BytesIO(thumbnail.content)).format == "WEBP"


def test_events_tell_the_whole_story_in_order(studio: Running) -> None:
    studio.drawer.gate.clear()
    job = studio.submit(n=2)
    with studio.client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: status"
        studio.drawer.gate.set()
        kinds = [line[7:] for line in lines if line.startswith("event: ")]
    assert kinds.count("picture") == 2
    assert kinds.count("progress") == 8
    assert kinds.count("preview") >= 1
    assert kinds[-1] == "end"
    assert kinds.index("progress") < kinds.index("picture")


def test_a_listener_that_comes_back_hears_what_it_missed(studio: Running) -> None:
    studio.drawer.gate.clear()
    job = studio.submit(n=2)
    path = f"/v1/jobs/{job['id']}/events"
    with studio.client.stream("GET", path) as stream:
        lines = stream.iter_lines()
        studio.drawer.gate.set()
        seen = next(line[4:] for line in lines if line.startswith("id: "))
    studio.wait(job["id"])
    missed = events(studio, path, **{"Last-Event-ID": seen})
    kinds = [kind for kind, _, _ in missed]
    assert "status" not in kinds[:1] and kinds[-1] == "end"
    for forgotten in ("0badc0de-1", "x", seen.partition("-")[0] + "-99999999999999999999"):
        kinds = [kind for kind, _, _ in events(studio, path, **{"Last-Event-ID": forgotten})]
        assert kinds == ["status", "end"]


def test_the_queue_view_hears_of_all_jobs(studio: Running) -> None:
    studio.drawer.gate.clear()
    first, second = studio.submit(), studio.submit()
    with studio.client.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        jobs: list[str] = []
        ends = 0
        studio.drawer.gate.set()
        for line in lines:
            if line.startswith("data: "):
                told = json.loads(line[6:])
                jobs.append(told.get("id", told.get("job")))
            ends += line == "event: end"
            if ends == 2:
                break
    assert {first["id"], second["id"]} <= set(jobs)


def test_cancelling_stops_within_a_step_and_keeps_what_is_finished(studio: Running) -> None:
    def stop_in_the_second(image: Any, step: int) -> None:
        if (image.seed, step) == (8, 1):
            studio.drawer.gate.clear()

    studio.drawer.fail = stop_in_the_second
    job = studio.submit(n=5, steps=20, seed=7)
    until(lambda: studio.client.get("/v1/pictures").json()["data"])
    answer = studio.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert answer.status_code == 200
    job = studio.wait(job["id"])
    assert job["status"] == "cancelled"
    assert [picture["seed"] for picture in job["images"]] == [7]
    studio.drawer.gate.set()
    assert studio.wait(studio.submit(seed=100)["id"])["status"] == "done"
    assert studio.drawer.drawn == [7, 8, 100]
    again = studio.client.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert again["status"] == "cancelled"


def test_a_waiting_job_is_cancelled_at_once(studio: Running) -> None:
    studio.drawer.gate.clear()
    first, second, third = studio.submit(), studio.submit(), studio.submit()
    until(lambda: studio.drawer.drawn)
    assert studio.client.get(f"/v1/jobs/{third['id']}").json()["position"] == 2
    studio.client.post(f"/v1/jobs/{second['id']}/cancel")
    assert studio.wait(second["id"])["status"] == "cancelled"
    assert studio.client.get(f"/v1/jobs/{third['id']}").json()["position"] == 1
    studio.drawer.gate.set()
    assert studio.wait(first["id"])["status"] == studio.wait(third["id"])["status"] == "done"


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    drawer = ScriptedDrawer()
    drawer.gate.clear()
    with running(tmp_path, drawer, engine={"capacity": 2}) as studio:
        accepted = [studio.submit()["id"]]
        until(lambda: drawer.drawn)
        accepted += [studio.submit()["id"], studio.submit()["id"]]
        answer = studio.client.post("/v1/jobs", json={"prompt": "one too many"})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "queue_full"
        drawer.gate.set()
        assert [studio.wait(id)["status"] for id in accepted] == ["done"] * 3
        assert len(studio.client.get("/v1/jobs").json()["data"]) == 3


def test_the_same_idempotency_key_is_the_same_job(studio: Running) -> None:
    headers = {"Idempotency-Key": "k1"}
    first, second = (
        studio.client.post("/v1/jobs", json={"prompt": "a fox"}, headers=headers) for _ in range(2)
    )
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    other = studio.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert len(studio.client.get("/v1/jobs").json()["data"]) == 1


def test_a_failure_is_told_and_does_not_take_the_others_along(studio: Running) -> None:
    def fail(image: Any, step: int) -> None:
        if image.seed == 13:
            raise RuntimeError("a secret of the server")

    studio.drawer.fail = fail
    bad, good = studio.submit(seed=13), studio.submit(seed=14)
    failed = studio.wait(bad["id"])
    assert failed["status"] == "failed"
    assert "secret" not in json.dumps(failed)
    assert studio.wait(good["id"])["status"] == "done"
    assert studio.drawer.drawn.count(13) == 2, "an error that may be a machine's is tried again"


def test_what_has_no_room_is_refused_when_it_is_asked_for(studio: Running) -> None:
    """Or, where that is found out later, says the same: it is the caller's to ask for less."""
    studio.drawer.most_tokens = 64
    asked = {"prompt": "a fox", "size": "256x256"}
    for path in ("/v1/jobs", "/v1/images/generations"):
        answer = studio.client.post(path, json=asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "does_not_fit"), answer.text
        assert error["message"] == "256x256 does not fit; ask for a smaller size"
    assert studio.client.get("/v1/jobs").json()["data"] == []

    def fail(image: Any, step: int) -> None:
        raise PlacementError("memory ran out at 128x128", "draw a smaller --size")

    studio.drawer.fail = fail
    job = studio.wait(studio.submit(size="128x128")["id"])
    assert job["status"] == "failed"
    assert job["error"]["code"] == "does_not_fit"
    assert job["error"]["type"] == "invalid_request_error"
    answer = studio.client.post("/v1/images/generations", json=asked | {"size": "128x128"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "does_not_fit")


def test_a_job_that_is_drawn_for_too_long_has_failed(tmp_path: Path) -> None:
    with running(tmp_path, ScriptedDrawer(seconds=0.05), draw_seconds=0.1) as studio:
        job = studio.wait(studio.submit(steps=40)["id"])
        assert (job["status"], job["error"]["code"]) == ("failed", "timeout")


def test_a_job_that_waits_for_too_long_has_failed(studio: Running) -> None:
    """Found out between two steps of the one that it waits for, which has begun in time."""
    studio.drawer.seconds = 0.05
    studio.drawer.gate.clear()
    first = studio.submit(steps=40)
    until(lambda: studio.drawer.drawn)
    studio.studio.jobs.settings = replace(studio.studio.settings, wait_seconds=0.1)
    waiting = studio.submit(steps=1)
    studio.drawer.gate.set()
    job = studio.wait(waiting["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "timeout")
    studio.client.post(f"/v1/jobs/{first['id']}/cancel")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "   "}, None),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "n": "2"}, "n"),
        ({"prompt": "x", "size": "100x100"}, None),
        ({"prompt": "x", "size": "../../etc"}, "size"),
        ({"prompt": "x", "size": "4096x4096"}, None),
        ({"prompt": "x", "aspect": "7:5"}, None),
        ({"prompt": "x", "aspect": "1:1", "size": "128x128"}, None),
        ({"prompt": "x", "steps": 101}, "steps"),
        ({"prompt": "x", "steps": True}, "steps"),
        ({"prompt": "x", "guidance": -1}, "guidance"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "seed": 2**63}, "seed"),
        ({"prompt": "x", "priority": "urgent"}, "priority"),
        ({"prompt": "x", "loras": [{"name": "../x"}]}, "loras"),
        ({"prompt": "x", "colour": "red"}, "colour"),
        ([], None),
    ],
)
def test_a_wrong_request_is_answered_and_leaves_nothing(
    shared_studio: Running, body: Any, param: str | None
) -> None:
    studio = shared_studio
    answer = studio.client.post("/v1/jobs", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if param is not None:
        assert error["param"] == param
    assert studio.client.get("/v1/jobs").json()["data"] == []


def test_an_unknown_model_is_not_found_unless_it_is_an_alias(tmp_path: Path) -> None:
    with running(tmp_path, aliases={"gpt-image": "other"}) as studio:
        answer = studio.client.post("/v1/jobs", json={"prompt": "x", "model": "gpt-image-9"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert studio.submit(model="gpt-image")["request"]["model"] == "other"


def test_pages_of_jobs(studio: Running) -> None:
    ids = [studio.submit()["id"] for _ in range(5)]
    for id in ids:
        studio.wait(id)
    first = studio.client.get("/v1/jobs", params={"limit": 3}).json()
    assert [job["id"] for job in first["data"]] == ids[:1:-1] and first["has_more"]
    last = studio.client.get("/v1/jobs", params={"limit": 3, "before": ids[2]}).json()
    assert [job["id"] for job in last["data"]] == ids[1::-1] and not last["has_more"]
    assert studio.client.get("/v1/jobs", params={"status": "queued"}).json()["data"] == []
    assert studio.client.get("/v1/jobs", params={"status": "lost"}).status_code == 400
    assert studio.client.get("/v1/jobs/job_of_nobody").status_code == 404
