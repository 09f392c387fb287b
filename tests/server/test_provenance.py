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

from petzval.errors import MissingExtraError, ServerError
from petzval.inference.image import read_recipe
from petzval.server.checks import load_checks
from petzval.server.provenance import Provenance
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
