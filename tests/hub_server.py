"""A hub on the loopback: what huggingface_hub 2.4 asks of one, and what can go wrong with it.

Large files (safetensors, gguf) are stored by SHA-256 and served by a second server, as the real
hub's are; small ones by git id, from the hub itself. Nothing here is the real thing's code.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LARGE = (".safetensors", ".gguf")
CHUNK = 1024
"""Bytes that the client takes at a time here."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_id(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that came in."""

    method: str
    path: str
    range: str | None
    token: str | None
    on_cdn: bool


@dataclass(kw_only=True)
class FakeHub:
    """The state of both servers; tests change it as they like.

    Attributes:
        files: repository -> path -> bytes.
        cuts: path -> for the next requests, after how many bytes the connection breaks.
        statuses: start of a request's path -> for the next requests, the error to answer.
        bodies: path -> other bytes than those that are listed.
        listing: repository -> what to say in place of the true listing.
        error_code: the header by which the hub explains an error.
        ignores_range: serves the whole file whatever is asked for.
        without_length: leaves Content-Length out, and the number of bytes open.
        page: files of one page of a listing.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    cuts: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    statuses: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    bodies: dict[str, bytes] = field(default_factory=dict[str, bytes])
    listing: dict[str, Any] = field(default_factory=dict[str, Any])
    error_code: str | None = None
    ignores_range: bool = False
    without_length: bool = False
    page: int = 1000
    commit: str = COMMIT
    log: list[Asked] = field(default_factory=list[Asked])

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._servers = [_Server(self, on_cdn) for on_cdn in (False, True)]
        self.url, self.cdn = (server.url for server in self._servers)

    def add_folder(self, repository: str, folder: Path) -> None:
        """Serve every file of a folder."""
        self.files[repository] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def asked_for(self, path: str) -> list[Asked]:
        """The requests for the bytes of one file."""
        return [asked for asked in self.log if asked.method == "GET" and asked.path.endswith(path)]

    def close(self) -> None:
        """Stop both servers."""
        for server in self._servers:
            server.stop()

    def next_of(self, table: Mapping[str, list[int]], path: str) -> int | None:
        """Take the next entry of the first key that the path starts or ends with."""
        with self._lock:
            for key, values in table.items():
                if values and (path.startswith(key) or path.endswith(key)):
                    return values.pop(0)
        return None


class _Server:
    def __init__(self, hub: FakeHub, on_cdn: bool) -> None:
        handler = type("Handler", (_Handler,), {"hub": hub, "on_cdn": on_cdn})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        # A client that goes away in the middle is what some tests are about.
        self._http.handle_error = lambda request, client_address: None
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    on_cdn: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        # A proxy is asked for the whole address.
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        header = self.headers.get
        self.hub.log.append(
            Asked(self.command, path, header("Range"), header("Authorization"), self.on_cdn)
        )
        status = self.hub.next_of(self.hub.statuses, path)
        if status is not None:
            self._error(status)
        elif self.on_cdn:
            self._send_cdn(path)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._send_tree(match[1], parse_qs(parts.query))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/([^/]+))?", path):
            self._send_info(match[1], match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(match[1], match[2], match[3])
        else:
            self._error(404)

    def _send_info(self, repository: str, revision: str) -> None:
        if repository not in self.hub.files:
            self._error(404, "RepoNotFound")
        elif revision not in ("main", self.hub.commit):
            self._error(404, "RevisionNotFound")
        else:
            self._json({"id": repository, "sha": self.hub.commit, "siblings": []})

    def _send_tree(self, repository: str, query: Mapping[str, list[str]]) -> None:
        files = self.hub.files.get(repository)
        if files is None:
            self._error(404, "RepoNotFound")
            return
        listing = self.hub.listing.get(repository) or [
            listed(name, data) for name, data in files.items()
        ]
        if not isinstance(listing, list):
            self._json(listing)
            return
        rows = cast("list[Any]", listing)
        start = int(query.get("cursor", ["0"])[0])
        stop = start + self.hub.page
        headers = {}
        if stop < len(rows):
            address = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={stop}"
            headers = {"Link": f'<{address}>; rel="next"'}
        self._json(rows[start:stop], headers)

    def _send_file(self, repository: str, revision: str, name: str) -> None:
        data = self.hub.files.get(repository, {}).get(name)
        if data is None:
            self._error(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{git_id(data)}"'}
        if name.endswith(LARGE):
            headers |= {
                "X-Linked-Etag": f'"{sha256(data)}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.hub.cdn}/{repository}/{name}",
            }
            self._reply(302, b"", headers)
        else:
            self._send_bytes(name, self.hub.bodies.get(name, data), headers)

    def _send_cdn(self, path: str) -> None:
        _, owner, repository, name = path.split("/", 3)
        data = self.hub.files[f"{owner}/{repository}"][name]
        self._send_bytes(name, self.hub.bodies.get(name, data), {})

    def _send_bytes(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and not self.hub.ignores_range:
            start, status = int(asked[1]), 206
            if start >= len(data):
                self._error(416)
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.hub.next_of(self.hub.cuts, name)
        self._reply(status, data[start:], headers, cut)

    def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._reply(200, json.dumps(value).encode(), {**(headers or {})})

    def _error(self, status: int, code: str | None = None) -> None:
        code = self.hub.error_code or code
        self._reply(status, b"{}", {"X-Error-Code": code} if code else {})

    def _reply(
        self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.hub.without_length and status < 300 and self.command == "GET":
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


def listed(name: str, data: bytes) -> dict[str, Any]:
    """A file as the hub's listing has it."""
    row: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_id(data)}
    if name.endswith(LARGE):
        row["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
    return row


@contextmanager
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeHub]:
    """A running hub, the environment that leads to it and to an empty cache, and no waiting.

    The client's session goes on from test to test; one that changes a proxy must close it.
    """
    hub = FakeHub()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    # The client reads these when it is imported, and tests forbid it the network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr("time.sleep", lambda _: None)
    try:
        yield hub
    finally:
        hub.close()


VARIABLES = (
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PETZVAL_REGISTRY", "PETZVAL_MODELS"),
    *("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
    *("NO_PROXY", "no_proxy"),
)
"""What a person's environment may hold, and tests must not."""


def published_folder() -> dict[str, bytes]:
    """Files in the published layout, small, of the right kind, and nothing that could be loaded."""
    settings = ("text_encoder", "transformer", "vae")
    files = {f"{name}/config.json": json.dumps({"of": name}).encode() for name in settings}
    for name in ("tokenizer", "tokenizer_config", "special_tokens_map"):
        files[f"tokenizer/{name}.json"] = json.dumps({"is": name}).encode()
    files |= {"model_index.json": b"{}", "scheduler/scheduler_config.json": b'{"steps": 4}'}
    weights = ("transformer/diffusion_pytorch_model", "text_encoder/model")
    for size, name in enumerate((*weights, "vae/diffusion_pytorch_model"), start=1):
        header = json.dumps({"__metadata__": {"of": name}}).encode()
        numbers = bytes(range(256)) * (600 // size)
        files[f"{name}.safetensors"] = len(header).to_bytes(8, "little") + header + numbers
    return files


def write_registry(path: Path, *mirrors: Mapping[str, Any]) -> Path:
    """A registry with these mirrors; what they leave out is that of a published folder."""
    own = resources.files("petzval.weights").joinpath("mirrors.json").read_text(encoding="utf-8")
    base: dict[str, Any] = {
        "name": "tiny",
        "title": "a tiny folder",
        "holds": "checkpoint",
        "model": "lens-turbo",
        "repository": "someone/Tiny",
        "provenance": "made for a test",
        "licences": ["lens"],
    }
    rows: list[dict[str, Any]] = []
    for mirror in mirrors:
        layout = {} if "files" in mirror else {"layout": "published"}
        rows.append({**base, **layout, **mirror})
    path.write_text(json.dumps(json.loads(own) | {"mirrors": rows}))
    return path
