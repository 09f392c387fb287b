"""More connections than may be: who asks is heard, who is silent gives way."""

from __future__ import annotations

import re
import resource
import socket
import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from petzval.server import connection
from petzval.server.run import allow_files
from tests.server.killable import killable
from tests.server.running import running
from tests.support import PATIENCE, until

CROWD = 2500
LIMIT = 256

ANSWER_SECONDS = 30.0
"""That a client waits at most, however many others hold sockets open and whatever else the machine
does; on an idle one it is some milliseconds."""

GROWTH_BYTES = 64 << 20
"""Of the server's memory under the crowd: 26 KB a socket."""


@pytest.fixture
def many_files() -> Generator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_files(CROWD + 1000)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < CROWD + 500:
        pytest.skip(f"this system allows {before[1]} files")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
def test_thousands_of_silent_connections_lock_nobody_out(tmp_path: Path) -> None:
    """Nor does it help that who is silent for long is let go: here nobody is."""
    with (
        killable(
            tmp_path, seconds=0.0, head_seconds=100 * PATIENCE, max_connections=LIMIT
        ) as server,
        _client(server.url) as client,
        ExitStack() as all,
    ):
        _timed(client)  # so that all is loaded
        memory, slowest = _memory(server.process), 0.0
        peers: list[socket.socket] = []
        for number in range(CROWD):
            peers.append(all.enter_context(_connected(server.url)))
            if number % 100 == 99:
                slowest = max(slowest, _timed(client))
        grown = _memory(server.process) - memory
        print(f"slowest answer {slowest:.3f} s, {grown / 2**20:.1f} MiB more")
        assert slowest < ANSWER_SECONDS and grown < GROWTH_BYTES
        until(lambda: _alive(peers) <= LIMIT and _sockets(server.process) <= LIMIT + 20)
        assert _alive(peers) > LIMIT - 20, "those beyond the limit are turned away, and only those"
        with _client(server.url) as newcomer:
            assert _timed(newcomer) < ANSWER_SECONDS
            job = newcomer.post("/v1/jobs", json={"prompt": "a fox"}).json()["id"]
            until(lambda: newcomer.get(f"/v1/jobs/{job}").json()["status"] == "done")


@pytest.mark.usefixtures("many_files")
def test_a_server_asks_for_as_many_files_as_it_may_need() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    allow_files(1024)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, hard)
    allow_files(800)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, hard), "never fewer"


def test_silence_gives_way_and_what_is_busy_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", PATIENCE)
    with running(tmp_path, max_connections=3) as studio, ExitStack() as all:
        studio.client.close()
        studio.drawer.gate.clear()
        asked = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"

        def connect(data: bytes = b"") -> socket.socket:
            peer = all.enter_context(_connected(studio.url))
            peer.sendall(data)
            return peer

        streams = [connect(asked), connect(asked)]
        assert all_begin(streams)
        silent = connect()
        kept = connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in kept.recv(4096)
        assert silent.recv(1) == b"", "it was the one that never asked"
        last = connect(asked)
        assert all_begin([last]) and kept.recv(1) == b"", "then the one that had its answer"
        began = time.monotonic()
        refused = connect(asked)
        answer = b""
        while part := refused.recv(4096):
            answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in head
        assert re.search(rb'"code": "too_many_connections"', body)
        assert time.monotonic() - began < connection.LINGER_SECONDS, "told at once"
        for stream in (*streams, last):
            stream.setblocking(False)
            with pytest.raises(BlockingIOError):
                while stream.recv(4096):
                    pass


def all_begin(streams: list[socket.socket]) -> bool:
    return all(b" 200 " in stream.recv(4096) for stream in streams)


def test_a_closed_connection_leaves_its_place(tmp_path: Path) -> None:
    with running(tmp_path, max_connections=2) as studio:
        for _ in range(20):
            with _connected(studio.url) as peer:
                asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                peer.sendall(asked)
                assert b" 200 " in peer.recv(4096)
        assert studio.client.get("/health").status_code == 200


def test_requests_sent_in_one_go_are_all_answered(tmp_path: Path) -> None:
    """The second one begins as the first one's answer ends, and is busy all the same."""
    asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = asked.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with (
        running(tmp_path, max_connections=2) as studio,
        _connected(studio.url) as peer,
    ):
        peer.sendall(asked + asked + last)
        answer = b""
        while part := peer.recv(4096):
            answer += part
        assert answer.count(b"HTTP/1.1 200 ") == 3


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 0), PATIENCE)


def _client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False)


def _timed(client: httpx2.Client) -> float:
    began = time.monotonic()
    assert client.get("/health").status_code == 200
    return time.monotonic() - began


def _alive(peers: list[socket.socket]) -> int:
    """How many of the peers the server still holds."""
    count = 0
    for peer in peers:
        peer.setblocking(False)
        try:
            count += bool(peer.recv(1))
        except BlockingIOError:
            count += 1
        except ConnectionError:
            pass
    return count


def _memory(process: int) -> int:
    text = (Path("/proc") / str(process) / "status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def _sockets(process: int) -> int:
    count = 0
    for each in (Path("/proc") / str(process) / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += str(each.readlink()).startswith("socket:")
    return count
