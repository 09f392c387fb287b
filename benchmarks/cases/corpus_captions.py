"""Captioning a corpus: captions a second on one core, and what asking costs beside the answer."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from benchmarks import loopback
from benchmarks.case import Case, Prepared

NUM_ROWS = 500
NUM_QUESTIONS = 64
CONCURRENCY = 8
HEIGHT, WIDTH = 512, 512
_INSTRUCTION = "Describe this picture in one paragraph."


def prepare_metadata(num_rows: int = NUM_ROWS) -> Prepared:
    """Captions that came with the import: read alone, then judged, kept in the ledger, written."""
    from benchmarks.photographs import cleaned_corpus
    from petzval.data.corpus.captioner import MetadataCaptioner
    from petzval.data.corpus.captions import caption_corpus

    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    corpus = cleaned_corpus(folder, num_rows, 32, 32)

    def read() -> None:
        for part in corpus.parts():
            captions: list[str] = corpus.read(part)["caption"].to_pylist()
            assert all(captions)

    def captioned() -> None:
        _forget(corpus.folder)
        run = caption_corpus(corpus, MetadataCaptioner(), mode="dense")
        assert run.counts == {"caption": num_rows}

    return Prepared(
        ways={"read the manifest": read, "+ judged, ledger on the disk, columns": captioned},
        dtype="text",
        facts={"captions": num_rows},
    )


def prepare_endpoint(url: str, num_questions: int = NUM_QUESTIONS) -> Prepared:
    """Questions to an endpoint that answers at once, so that what is timed is our side.

    Args:
        url: of an endpoint that speaks OpenAI's chat protocol.
        num_questions: pictures to ask about.
    """
    from benchmarks.photographs import cleaned_corpus, photograph
    from petzval.data.corpus.captions import caption_corpus
    from petzval.data.corpus.endpoint import EndpointAddress, EndpointCaptioner

    folder = Path(tempfile.mkdtemp(prefix="petzval-benchmark-"))
    corpus = cleaned_corpus(folder, num_questions, HEIGHT, WIDTH)
    bodies = [_body(photograph(number, HEIGHT, WIDTH)) for number in range(num_questions)]
    address = EndpointAddress(base_url=url, model="loopback", api_key="none")

    def captioned() -> None:
        _forget(corpus.folder)
        run = caption_corpus(corpus, EndpointCaptioner(address), concurrency=CONCURRENCY)
        assert run.counts == {"caption": num_questions} and run.num_asked == num_questions

    return Prepared(
        ways={
            "http.client, one after the other": lambda: _ask_plainly(url, bodies),
            "openai, 8 at a time": lambda: asyncio.run(_ask_openai(url, bodies)),
            "+ decode, scale, JPEG, budget, ledger, columns": captioned,
        },
        dtype="uint8",
        facts={
            "requests": num_questions,
            "under way at a time": CONCURRENCY,
            "bytes of a request": len(json.dumps(bodies[0])),
        },
    )


def _prepare_loopback() -> Prepared:
    os.environ["NO_PROXY"] = "127.0.0.1"
    url, _ = loopback.start()
    return prepare_endpoint(url)


def _forget(corpus: Path) -> None:
    shutil.rmtree(corpus / "captions", ignore_errors=True)
    shutil.rmtree(corpus / "columns" / "captions-dense", ignore_errors=True)


def _body(picture: bytes) -> dict[str, Any]:
    """A question as the captioner asks it, made beforehand."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.save(buffer, "JPEG", quality=85)
    url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [
        {"type": "text", "text": _INSTRUCTION},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return {"model": "loopback", "messages": [{"role": "user", "content": content}]}


def _ask_plainly(url: str, bodies: Sequence[dict[str, Any]]) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    headers = {"Content-Type": "application/json"}
    for body in bodies:
        connection.request("POST", f"{parts.path}/chat/completions", json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        assert answer["choices"][0]["message"]["content"]
    connection.close()


async def _ask_openai(url: str, bodies: Sequence[dict[str, Any]]) -> None:
    import openai

    room = asyncio.Semaphore(CONCURRENCY)

    async def ask(client: openai.AsyncOpenAI, body: dict[str, Any]) -> None:
        async with room:
            answer = await client.chat.completions.create(**body)
        assert answer.choices[0].message.content

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        await asyncio.gather(*(ask(client, body) for body in bodies))


CASES = (
    Case(
        name="caption-metadata",
        title=f"{NUM_ROWS} captions of the source, on one core",
        why="the captions of a packaged set cost no model, so nothing but the disk should be felt: "
        "each is on it before the next is read",
        prepare=prepare_metadata,
        rounds=3,
        max_seconds=10.0,
        threads=1,
    ),
    Case(
        name="caption-requests",
        title=f"{NUM_QUESTIONS} questions to an endpoint on this machine that answers at once",
        why="a captioning model answers some tens of pictures a second; what our client adds to a "
        "request must stay well below that",
        prepare=_prepare_loopback,
        rounds=5,
        max_seconds=5.0,
        threads=1,
    ),
)
