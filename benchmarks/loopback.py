"""A chat endpoint on 127.0.0.1, in a process of its own, that answers every question at once."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from benchmarks.photographs import CAPTION

_ANSWER = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "loopback",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": CAPTION},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 900, "completion_tokens": 70, "total_tokens": 970},
    }
).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body would otherwise wait for each other's acknowledgement, 40 ms an answer.
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(_ANSWER)))
        self.end_headers()
        self.wfile.write(_ANSWER)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _serve(told: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    told.send(server.server_port)
    server.serve_forever()


def start() -> tuple[str, SpawnProcess]:
    """Start the endpoint: its base URL, and its process, which ends with this one at the latest."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    if not ours.poll(60):
        process.kill()
        raise RuntimeError("the loopback endpoint did not start within a minute")
    return f"http://127.0.0.1:{ours.recv()}/v1", process


@contextmanager
def serving() -> Generator[str]:
    """The base URL of an endpoint that ends with the block."""
    url, process = start()
    try:
        yield url
    finally:
        process.kill()
        process.join()
