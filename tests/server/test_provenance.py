"""Signed pictures, and pictures that are refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Generator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from PIL import Image

from petzval.errors import MissingExtraError, RequestError, ServerError
from petzval.inference.image import read_recipe
from petzval.inference.mark import marked
from petzval.server.checks import load_checks
from petzval.server.provenance import Provenance
from petzval.server.settings import ServerSettings
from tests.server.certificates import write_certificate
from tests.server.running import Running, running


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    folder = tmp_path_factory.mktemp("signing")
    provenance = Provenance(*write_certificate(folder))
    with running(folder / "studio", parts={"provenance": provenance}) as studio:
        yield studio


def _manifest(data: bytes, format: str) -> dict[str, Any]:
    with c2pa.Reader(f"image/{format}", io.BytesIO(data)) as reader:
        return json.loads(reader.json())


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_pictures_say_that_a_model_made_them(signing: Running, format: str, tmp_path: Path) -> None:
    body = {"prompt": "a fox", "output_format": format, "petzval": {"seed": 9}}
    answer = signing.client.post("/v1/images/generations", json=body).json()
    data = base64.b64decode(answer["data"][0]["b64_json"])
    told = _manifest(data, format)
    assert told["validation_state"] == "Valid"
    assert [s["code"] for s in told["validation_status"]] == ["signingCredential.untrusted"]
    [manifest] = told["manifests"].values()
    assert manifest["signature_info"]["common_name"] == "studio"
    assert "trainedAlgorithmicMedia" in json.dumps(manifest["assertions"])
    assert "a fox" not in json.dumps(told)
    path = tmp_path / f"x.{format}"
    path.write_bytes(data)
    assert read_recipe(path).seed == 9


def test_a_signed_picture_that_is_changed_is_no_longer_valid(signing: Running) -> None:
    job = signing.wait(signing.submit()["id"])
    data = bytearray(signing.client.get(job["images"][0]["url"]).content)
    assert _manifest(bytes(data), "png")["validation_state"] == "Valid"
    data[data.index(b"IDAT") + 60] ^= 1
    assert _manifest(bytes(data), "png")["validation_state"] == "Invalid"


def test_a_certificate_that_cannot_sign_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = write_certificate(tmp_path)
    with pytest.raises(ServerError, match="cannot be read"):
        Provenance(tmp_path / "none.pem", key)
    with pytest.raises(ServerError, match="unknown algorithm"):
        Provenance(chain, key, algorithm="md5")
    (tmp_path / "other").mkdir()
    _, other = write_certificate(tmp_path / "other")
    with pytest.raises(ServerError, match="cannot be signed"):
        Provenance(chain, other)
    with pytest.raises(ServerError, match="cannot be signed"):
        Provenance(key, chain)
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(MissingExtraError):
        Provenance(chain, key)


MARK = "made by AI"


def test_every_picture_of_a_marking_server_is_marked(tmp_path: Path) -> None:
    """Finished ones in all formats, and those on the way; whatever a caller asks for."""
    with running(tmp_path / "plain") as studio:
        plain = _pixels(studio, studio.wait(studio.submit(seed=9)["id"]))
    with running(tmp_path / "marked", mark=f" {MARK} ") as studio:
        job = studio.wait(studio.submit(seed=9)["id"])
        assert np.array_equal(_pixels(studio, job), marked(plain, MARK))
        assert job["images"][0]["recipe"]["mark"] == MARK
        assert read_recipe(tmp_path / "marked/pictures" / f"{job['images'][0]['id']}.png").mark
        refused = studio.client.post("/v1/jobs", json={"prompt": "a fox", "mark": ""})
        assert refused.status_code == 400, "it is not for callers to choose"
        body = {"prompt": "a fox", "stream": True, "partial_images": 1, "petzval": {"seed": 9}}
        with studio.client.stream("POST", "/v1/images/generations", json=body) as stream:
            data = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
        shown = [_decoded(base64.b64decode(json.loads(each)["b64_json"])) for each in data]
        assert len(shown) == 2
        assert all(np.array_equal(each, marked(plain, MARK)) for each in shown)
        small = studio.client.post("/v1/jobs", json={"prompt": "a fox", "size": "16x16"})
        assert small.status_code == 400 and "does not fit" in small.json()["error"]["message"]


def test_a_server_refuses_a_mark_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="built-in font"):
        ServerSettings(folder=tmp_path, mark="AI生成")


def _pixels(studio: Running, job: dict[str, Any]) -> np.ndarray:
    return _decoded(studio.client.get(job["images"][0]["url"]).content)


def _decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Prude:
    """Refuses a word, and pictures of one colour."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> str | None:
        return "no badgers here" if "badger" in prompt else None

    def check_picture(self, picture: Image.Image, prompt: str) -> str | None:
        return "too dark" if np.asarray(picture)[0, 0, 0] == 13 else None


def test_a_check_refuses_prompts_and_pictures(tmp_path: Path) -> None:
    with running(tmp_path, parts={"checks": (Prude(),)}) as studio:
        answer = studio.client.post("/v1/jobs", json={"prompt": "a badger"})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "content_policy_violation"
        job = studio.wait(studio.submit(seed=12, n=3)["id"])
        assert job["status"] == "failed" and job["error"]["message"] == "too dark"
        assert [picture["seed"] for picture in job["images"]] == [12]
        assert len(studio.client.get("/v1/pictures").json()["data"]) == 1
        studio.drawer.gate.clear()
        job = studio.submit(seed=20)
        with studio.client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            studio.drawer.gate.set()
            kinds = {line for line in lines if line.startswith("event: ")}
        assert "event: preview" not in kinds and "event: picture" in kinds
        body = {"prompt": "a fox", "petzval": {"seed": 13}}
        refused = studio.client.post("/v1/images/generations", json=body)
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "too dark")


def test_checks_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("prude", "tests.server.test_provenance:Prude", "petzval.content_checks"),
        EntryPoint("nothing", "builtins:object", "petzval.content_checks"),
    ]
    monkeypatch.setattr("petzval.server.checks.entry_points", lambda group: points)
    [check] = load_checks(["prude"])
    assert check.check_prompt("a badger", "") == "no badgers here"
    for name, words in (("absent", "no installed package"), ("nothing", "no content check")):
        with pytest.raises(ServerError, match=words):
            load_checks([name])
