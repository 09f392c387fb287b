"""A chat endpoint on 127.0.0.1 that misbehaves as it is told, picture by picture."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petzval.data.corpus.filters import Band, BandFilter, Decodes, Measure
from petzval.data.corpus.importing import import_source
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.sources import FolderSource
from petzval.data.corpus.stages import run_stage

PROMPT_TOKENS, COMPLETION_TOKENS = 300, 40
KEY = "sk-a-secret-key-1234567890"
_STEP = 12


@dataclass
class Heard:
    """A request as the endpoint saw it."""

    number: int
    instruction: str
    size: tuple[int, int]
    headers: Mapping[str, str]
    body: dict[str, Any]
    moment: float


@dataclass
class Endpoint:
    """The endpoint's orders and its diary.

    Attributes:
        orders: picture number -> what to do with its first request, its second, …; afterwards,
            and for all others, a caption is answered.
        for_all: what to do with every request, before the orders.
    """

    orders: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    for_all: str = ""
    delay: float = 0.0
    heard: list[Heard] = field(default_factory=list[Heard])
    url: str = ""

    def numbers(self) -> list[int]:
        """Which pictures were asked about, in order."""
        return [each.number for each in self.heard]


def grey(number: int) -> int:
    """The grey of picture `number`, far enough from its neighbours' to survive JPEG."""
    return 6 + _STEP * number


def caption_of(number: int) -> str:
    """What the endpoint answers about picture `number`."""
    return f"A field of grey number {number}."


def write_pictures(folder: Path, count: int, *, side: int = 40) -> None:
    """Pictures that the endpoint tells apart by their grey."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((side, side + number, 3), grey(number), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def cleaned_corpus(folder: Path, count: int, *, rows_per_part: int = 4) -> Corpus:
    """A corpus of such pictures, of which none is dropped."""
    write_pictures(folder / "pictures", count)
    corpus = Corpus.create(folder / "corpus", "test", rows_per_part=rows_per_part)
    import_source(corpus, FolderSource(folder / "pictures"))
    for stage in (Measure(), Decodes(), BandFilter(name="area", settings=Band(minimum=9.0))):
        run_stage(corpus, stage)
    return corpus


@contextmanager
def serving() -> Generator[Endpoint]:
    """Run an endpoint; all its threads have ended when this ends."""
    endpoint = Endpoint()
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_POST(self) -> None:
            length = min(int(self.headers.get("Content-Length", 0)), 1 << 22)
            body = json.loads(self.rfile.read(length))
            number, size = _picture_in(body)
            text = body["messages"][0]["content"][0]["text"]
            headers = {name.lower(): value for name, value in self.headers.items()}
            heard = Heard(number, text, size, headers, body, time.monotonic())
            endpoint.heard.append(heard)
            orders = endpoint.orders.get(number, [])
            what = endpoint.for_all or (orders.pop(0) if orders else "caption")
            closing.wait(endpoint.delay)
            with suppress(BrokenPipeError, ConnectionResetError):
                self._obey(what, number)

        def _obey(self, what: str, number: int) -> None:
            if what in _STATUSES:
                status, headers, answer = _STATUSES[what]
                self._send(status, json.dumps(answer).encode(), headers)
            elif what == "drop":
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                self.wfile.write(b'Content-Length: 5000\r\n\r\n{"id": "half an ans')
            elif what == "hang":
                closing.wait(30)
                self.close_connection = True
            elif what == "drip":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                while not closing.wait(0.02):
                    self.wfile.write(b" ")
            elif what == "html":
                self._send(200, b"<html>Gateway</html>", {"Content-Type": "text/html"})
            elif what == "malformed":
                self._send(200, b'{"choices": [{"mess', {})
            elif what == "strange":
                self._send(200, b'{"choices": [{"message": null}], "usage": "much"}', {})
            elif what == "no choices":
                self._send(200, b'{"choices": []}', {})
            else:
                self._send(200, json.dumps(_completion(what, number)).encode(), {})

        def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that were killed

    server = Server(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _picture_in(body: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
    url: str = body["messages"][0]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        value = float(np.asarray(image.convert("L")).mean())
        return round((value - grey(0)) / _STEP), image.size


_STATUSES: Mapping[str, tuple[int, Mapping[str, str], Mapping[str, Any]]] = {
    "429": (429, {"Retry-After": "0.4"}, {"error": {"message": "slow down"}}),
    "500": (500, {}, {"error": {"message": "oh no"}}),
    "503": (503, {}, {}),
    "401": (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
    "404": (404, {}, {"error": {"message": "no such model"}}),
    "400": (400, {}, {"error": {"message": f"bad picture, says {KEY}"}}),
    "filtered": (400, {}, {"error": {"message": "policy", "code": "content_policy_violation"}}),
    "no credit": (429, {}, {"error": {"message": "pay", "code": "insufficient_quota"}}),
}


def _completion(what: str, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": caption_of(number)}
    finish = "stop"
    if what == "refusal":
        message["content"] = "I'm sorry, but I can't help with that."
    elif what == "marked refusal":
        message |= {"content": None, "refusal": "Not this one."}
    elif what == "withheld":
        message["content"], finish = "", "content_filter"
    elif what == "empty":
        message["content"] = " \n"
    elif what == "endless":
        message["content"] = "Grey upon grey. " * 400 + "And then"
    elif what == "one long sentence":
        message["content"] = "grey " * 900
    elif what == "cut off":
        message["content"], finish = "A grey field. It goes on and", "length"
    elif what == "half a character":
        message["content"] = "A grey \ud800 field\x00 with\nlines."
    completion = {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if what != "no usage":
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
        completion |= {"usage": usage}
    return completion


def numbered(corpus: Corpus, columns: Sequence[str], stage: str) -> dict[int, dict[str, Any]]:
    """Picture number -> a stage's columns."""
    found: dict[int, dict[str, Any]] = {}
    for part in corpus.parts():
        for row in corpus.read(part, (stage,)).to_pylist():
            found[int(Path(row["path"]).stem)] = {c: row[f"{stage}.{c}"] for c in columns}
    return found
