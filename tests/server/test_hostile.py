"""What an enemy sends. Each test is a row of the table in docs/guides/serve.md.

Thousands of connections are in test_crowd.py.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import socket
import struct
import time
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from petzval.server import connection
from petzval.server.settings import ServerSettings
from tests.server.running import Running, running
from tests.support import PATIENCE, until

JSON = {"Content-Type": "application/json"}


def _raw(studio: Running, data: bytes, *, seconds: float = PATIENCE) -> bytes:
    """What the server answers to bytes that no client library would send."""
    with socket.create_connection(_address(studio), seconds) as peer:
        peer.sendall(data)
        answer = b""
        while part := peer.recv(65536):
            answer += part
        return answer


def _address(studio: Running) -> tuple[str, int]:
    parts = urlsplit(studio.url)
    assert parts.hostname is not None
    return parts.hostname, parts.port or 0


def _head(method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


TRAVERSALS = [
    "/v1/pictures/../../etc/passwd/file",
    "/v1/pictures/..%2f..%2fjobs.sqlite/file",
    "/v1/pictures/%2e%2e%2fjobs/file",
    "/v1/pictures/pic_%00/file",
    "/v1/pictures//etc/passwd/thumbnail",
    "/static/../app.py",
    "/static/..%2fapp.py",
    "/static/%2e%2e/%2e%2e/settings.py",
    "/static//etc/passwd",
    "/static/..\\app.py",
    "/v1/jobs/..%2f..%2fsecret",
    "/v1/models/..%2f..%2fsecret",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_of_a_request_reaches_the_disk(shared_studio: Running, path: str) -> None:
    answer = _raw(shared_studio, _head("GET", path, "Connection: close"))
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 404, 405, 307)
    assert b"root:" not in answer and b"import" not in answer and b"SQLite" not in answer


def test_names_of_loras_and_models_are_no_paths(shared_studio: Running) -> None:
    for extra in ({"model": "../../mini"}, {"loras": [{"name": "/etc/passwd"}]}):
        answer = shared_studio.client.post("/v1/jobs", json={"prompt": "x"} | extra)
        assert answer.status_code in (400, 404)


def test_header_injection_is_escaped_or_refused(shared_studio: Running) -> None:
    body = {"prompt": "x\r\nSet-Cookie: stolen=1\r\n\r\n", "n": 1}
    answer = shared_studio.client.post("/v1/jobs", json=body)
    assert answer.status_code == 202 and "set-cookie" not in answer.headers
    evil = _head("GET", "/v1/jobs/x%0d%0aSet-Cookie:%20stolen=1", "Connection: close")
    assert b"\r\nset-cookie" not in _raw(shared_studio, evil).lower()
    smuggled = _head("POST", "/v1/jobs", "Content-Length: 5", "Transfer-Encoding: chunked", *JSON)
    assert b" 202 " not in _raw(shared_studio, smuggled + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n")


def test_event_injection_stays_inside_its_event(shared_studio: Running) -> None:
    prompt = "x\n\nevent: end\ndata: {}\n\nid: 7\u2028"
    job = shared_studio.submit(prompt=prompt)
    with shared_studio.client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        text = "".join(stream.iter_text())
    blocks = text.strip().split("\n\n")
    for block in blocks:
        assert re.fullmatch(r"(id: [0-9a-f]+-\d+\n)?event: \w+\ndata: \{.*\}", block), block[:200]
    last = json.loads(blocks[-1].split("\ndata: ", 1)[1])
    assert last["status"] == "done" and last["request"]["prompt"] == prompt


def test_a_huge_body_is_not_read(tmp_path: Path) -> None:
    with running(tmp_path, body_bytes=4096) as studio:
        huge = {"prompt": "x" * 100_000}
        assert studio.client.post("/v1/jobs", json=huge).status_code == 413

        def endless() -> Any:
            for _ in range(1000):
                yield b'{"prompt": "' + b"x" * 1024

        try:
            answer = studio.client.post("/v1/jobs", content=endless(), headers=JSON)
            assert answer.status_code == 413
        except (httpx2.NetworkError, httpx2.RemoteProtocolError):
            pass  # the connection was closed while the rest was being sent
        announced = _head("POST", "/v1/jobs", "Content-Length: 99999999999", *_lines(JSON))
        assert b" 413 " in _raw(studio, announced)
        assert studio.wait(studio.submit()["id"])["status"] == "done"


def _lines(headers: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"prompt":' * 50_000,
        b'{"petzval":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"prompt": "x", "n": ' + b"9" * 5_000 + b"}",
        b'{"prompt": "x", "guidance": 1e99999}',
        b'{"prompt": "x", "guidance": NaN}',
        b'{"prompt": "x", "guidance": Infinity}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x"} trailing',
        b"",
        b"\x00" * 100,
        '{"prompt": "ä"}'.encode("latin-1"),
        b"\xff\xfe" + '{"prompt": "x"}'.encode("utf-16-le"),
        b"\xef\xbb\xbf" + b'{"prompt": 1}',
        b"prompt=x&n=1",
    ],
    ids=lambda body: repr(body[:18]),
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images/generations"])
def test_json_that_is_deep_or_broken_is_a_bad_request(
    shared_studio: Running, body: bytes, path: str
) -> None:
    answer = shared_studio.client.post(path, content=body, headers=JSON)
    assert answer.status_code in (202, 400) if b"ud800" in body else answer.status_code == 400
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-7",
        "application/json, text/plain",
        "",
    ],
)
def test_only_json_is_json(shared_studio: Running, kind: str) -> None:
    """A form of another site can send these without asking; it cannot send JSON."""
    headers = {"Content-Type": kind}
    answer = shared_studio.client.post("/v1/jobs", content=b'{"prompt":"x"}', headers=headers)
    assert answer.status_code == 415


def test_compressed_bodies_are_refused_unread(shared_studio: Running) -> None:
    bomb = gzip.compress(b'{"prompt": "' + b"x" * 50_000_000 + b'"}')
    for encoding in ("gzip", "deflate", "br", "identity, gzip"):
        headers = JSON | {"Content-Encoding": encoding}
        answer = shared_studio.client.post("/v1/jobs", content=bomb[:1000], headers=headers)
        assert answer.status_code == 415


def bomb_png(width: int = 60_000, height: int = 60_000) -> bytes:
    """A small file that would be 10 GB of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_slow_body_is_given_up(tmp_path: Path) -> None:
    with running(tmp_path, body_seconds=0.2) as studio:
        slow = _head("POST", "/v1/jobs", "Content-Length: 50", *_lines(JSON)) + b'{"pro'
        began = time.monotonic()
        answer = _raw(studio, slow)
        assert b" 408 " in answer and b"request_timeout" in answer
        assert time.monotonic() - began < ServerSettings(folder=tmp_path).body_seconds


def test_a_slow_head_and_an_idle_connection_are_given_up(
    shared_studio: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = connection.HEAD_SECONDS
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    for start in (b"", b"GET /health HTTP/1.1\r\nHost: loc"):
        began = time.monotonic()
        assert _raw(shared_studio, start) == b""
        assert time.monotonic() - began < usual


def test_a_kept_connection_lives_through_its_pauses(
    shared_studio: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for a head does not run between requests."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 1.0)
    with socket.create_connection(_address(shared_studio), PATIENCE) as peer:
        peer.sendall(_head("GET", "/health"))
        assert b" 200 " in _answer(peer)
        time.sleep(1.2)
        peer.sendall(_head("GET", "/health"))
        assert b" 200 " in _answer(peer)


def _answer(peer: socket.socket) -> bytes:
    """One answer, whose length is said."""
    answer = b""
    while not (found := re.search(rb"content-length: (\d+)\r\n(?s:.*?)\r\n\r\n", answer)):
        answer += _more(peer)
    while len(answer) < found.end() + int(found[1]):
        answer += _more(peer)
    return answer


def _more(peer: socket.socket) -> bytes:
    part = peer.recv(65536)
    assert part, "the connection was closed"
    return part


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost:80@evil", "", "[::2]:80"]
)
def test_another_name_for_this_machine_is_refused(shared_studio: Running, host: str) -> None:
    """A page of another site may make its own name point here; the browser then says its name."""
    answer = _raw(
        shared_studio,
        f"GET /v1/jobs HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode(),
    )
    assert b" 421 " in answer.split(b"\r\n")[0]


def test_names_of_this_machine_are_taken(tmp_path: Path) -> None:
    with running(tmp_path, names=("studio.example",)) as studio:
        for host in ("localhost", "LOCALHOST:99", "[::1]:8000", "studio.example:443"):
            assert studio.client.get("/health", headers={"Host": host}).status_code == 200


def test_other_sites_learn_nothing(shared_studio: Running) -> None:
    origin = {"Origin": "https://evil.example"}
    for answer in (
        shared_studio.client.get("/v1/jobs", headers=origin),
        shared_studio.client.options(
            "/v1/jobs", headers=origin | {"Access-Control-Request-Method": "POST"}
        ),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    asked = shared_studio.client.get("/v1/jobs", headers={"Sec-Fetch-Site": "cross-site"})
    assert asked.status_code == 403
    told = shared_studio.client.get("/health").headers
    assert told["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/v1/jobs", "/v1/nothing", "/health"])
def test_every_answer_has_the_security_headers(shared_studio: Running, path: str) -> None:
    headers = shared_studio.client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers


@pytest.mark.parametrize(
    "key",
    [
        "",
        "Bearer ",
        "Bearer pz-000000000000-" + "A" * 43,
        "Bearer pz-" + "0" * 5000,
        "Basic cHo6cHo=",
        "Bearer pz-%27 OR 1=1",
        "Bearer \xe4",
        "bearer",
    ],
)
def test_forged_keys_are_all_answered_alike(keyed: tuple[Running, str], key: str) -> None:
    studio, _ = keyed
    for path in ("/v1/jobs", "/v1/models", "/v1/pictures", "/v1/events", "/metrics"):
        answer = _raw(studio, _head("GET", path, f"Authorization: {key}", "Connection: close"))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 401 " in head.split(b"\r\n")[0] and b"www-authenticate: Bearer" in head
        assert json.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running(tmp_path_factory.mktemp("keyed"), keys=True) as studio:
        yield studio, studio.studio.keys.add("mine")


def test_a_key_with_one_letter_changed_is_no_key(keyed: tuple[Running, str]) -> None:
    studio, key = keyed

    def status(given: str) -> int:
        headers = {"Authorization": f"Bearer {given}"}
        return studio.client.get("/v1/jobs", headers=headers).status_code

    assert status(key) == 200
    assert status(key[:-1] + ("A" if key[-1] != "A" else "B")) == 401
    assert status(key.upper()) == 401
    assert studio.client.get("/health").status_code == 200, "health needs no key"


def test_one_key_does_not_see_what_another_made(keyed: tuple[Running, str]) -> None:
    studio, key = keyed
    mine = {"Authorization": f"Bearer {key}"}
    theirs = {"Authorization": f"Bearer {studio.studio.keys.add('theirs')}"}
    job = studio.client.post("/v1/jobs", json={"prompt": "x"}, headers=mine).json()

    def pictures() -> list[Any]:
        return studio.client.get("/v1/pictures", headers=mine).json()["data"]

    until(pictures)
    picture = pictures()[0]["id"]
    for method, path in [
        ("GET", f"/v1/jobs/{job['id']}"),
        ("GET", f"/v1/jobs/{job['id']}/events"),
        ("POST", f"/v1/jobs/{job['id']}/cancel"),
        ("GET", f"/v1/pictures/{picture}"),
        ("GET", f"/v1/pictures/{picture}/file"),
        ("GET", f"/v1/pictures/{picture}/thumbnail"),
        ("DELETE", f"/v1/pictures/{picture}"),
        ("POST", f"/v1/pictures/{picture}/restore"),
    ]:
        assert studio.client.request(method, path, headers=theirs).status_code == 404
    assert studio.client.get("/v1/pictures", headers=theirs).json()["data"] == []
    assert studio.client.get("/v1/jobs", headers=theirs).json()["data"] == []


def test_the_key_is_not_kept(keyed: tuple[Running, str]) -> None:
    studio, key = keyed
    secret = key.split("-", 2)[2].encode()  # url-safe base64 may itself contain "-"
    for path in studio.studio.store.folder.iterdir():
        if path.is_file():
            assert secret not in path.read_bytes()


def test_prompts_are_not_logged_unless_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for log_prompts in (False, True):
        with running(tmp_path / str(log_prompts), log_prompts=log_prompts) as studio:
            studio.wait(studio.submit(prompt="a very private fox")["id"])
            studio.client.post("/v1/jobs", json={"prompt": "a very private fox", "n": "x"})
        told = [str(getattr(r, "facts", "")) + r.getMessage() for r in caplog.records]
        assert any("private fox" in text for text in told) is log_prompts


def test_a_line_of_the_log_cannot_be_forged() -> None:
    import logging

    from petzval.server.journal import JsonFormatter

    record = logging.LogRecord("x", logging.INFO, "x", 1, 'a\n{"event": "forged"}', (), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line and json.loads(line)["event"].startswith("a\n")


def test_a_picture_that_unfolds_without_end_is_no_recipe(shared_studio: Running) -> None:
    buffer = io.BytesIO(bomb_png())
    answer = shared_studio.client.post(
        "/v1/recipes/read", content=buffer.getvalue(), headers={"Content-Type": "image/png"}
    )
    assert answer.status_code in (404, 422), "and the pixels were not unfolded"
