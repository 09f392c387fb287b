"""`POST /v1/images/generations`: OpenAI's Images API, for programs that speak it already.

A request becomes a job like any other. It is cancelled when nobody waits for its answer any more,
unless it has an idempotency key, with which somebody may come back.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from petzval.inference.event import PicturePixels
from petzval.resolution import Resolution
from petzval.server.describing import describe_picture
from petzval.server.errors import ApiError
from petzval.server.events import Event, sse
from petzval.server.formats import Format, base64_of
from petzval.server.keys import Caller
from petzval.server.routes.jobs import PAUSE_SECONDS, STREAM_HEADERS, IdempotencyKey
from petzval.server.schemas import ImageAnswer, ImagesAnswer, ImagesRequest, JobRequest, Usage
from petzval.server.state import Studio, TheCaller, TheStudio
from petzval.server.store import UNFINISHED
from petzval.server.strict_json import StrictRoute
from petzval.server.tables import JobRow, PictureRow

router = APIRouter(prefix="/v1/images", tags=["images"], route_class=StrictRoute)

_STEPS: dict[str, float] = {"low": 0.5, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 2.5}
"""Quality → steps, in multiples of the model's own; what is not here takes the model's own."""

_FEW_STEPS = 8
"""Models that draw in no more than these steps were distilled to them: quality changes nothing."""

_OLD_QUALITIES = {"standard": "medium", "hd": "high", "auto": "medium"}


@router.post("/generations", response_model=ImagesAnswer)
async def generate_images(
    body: ImagesRequest,
    request: Request,
    studio: TheStudio,
    caller: TheCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Draw pictures and answer with them; with `stream`, with pictures-so-far before each."""
    job = job_request(body, studio)
    if body.background == "transparent":
        raise ApiError(400, "pictures are opaque here", param="background", code="invalid_value")
    if body.output_compression is not None and (body.output_format or "png") == "png":
        raise ApiError(
            400,
            "output_compression is for jpeg and webp",
            param="output_compression",
            code="invalid_value",
        )
    row, _ = await run_in_threadpool(
        studio.jobs.accept,
        job,
        caller,
        idempotency_key=idempotency_key,
        source="images",
        user=body.safety_identifier or body.user or "",
        partials=(body.partial_images or 0) if body.stream else 0,
    )
    answering = _Answering(
        body, row, studio, caller, request, may_come_back=idempotency_key is not None
    )
    if body.stream:
        return StreamingResponse(
            answering.stream(), media_type="text/event-stream", headers=STREAM_HEADERS
        )
    return await answering.whole()


def job_request(body: ImagesRequest, studio: Studio) -> JobRequest:
    """The job that an Images request means."""
    own = body.petzval
    name = own.model or body.model
    model = studio.jobs.offers.model(name)
    steps = own.steps
    if steps is None and model.defaults.steps > _FEW_STEPS and body.quality in _STEPS:
        steps = round(model.defaults.steps * _STEPS[body.quality])
    return JobRequest(
        prompt=body.prompt,
        n=1 if body.n is None else body.n,
        size=None if body.size == "auto" else body.size,
        aspect=own.aspect,
        base=own.base,
        steps=steps,
        guidance=own.guidance,
        negative_prompt=own.negative_prompt,
        seed=own.seed,
        model=name,
        loras=own.loras,
        priority=own.priority,
    )


class _Answering:
    """Waits for a job and tells of it in OpenAI's words."""

    def __init__(
        self,
        body: ImagesRequest,
        row: JobRow,
        studio: Studio,
        caller: Caller,
        request: Request,
        *,
        may_come_back: bool,
    ) -> None:
        self._body, self._row, self._studio, self._caller = body, row, studio, caller
        self._request = request
        self._may_come_back = may_come_back
        self._format: Format = body.output_format or "png"
        self._partials: dict[int, int] = {}
        self._sent: set[str] = set()

    async def whole(self) -> Response:
        """The answer without streaming, once all pictures are there."""
        async for _ in self._events(pause=1.0):
            if await self._request.is_disconnected():
                await self._give_up()
                break
        row = await run_in_threadpool(self._studio.jobs.find, self._row.id, self._caller)
        if row.status != "done":
            raise _failure(row)
        answer = await run_in_threadpool(self._answer, row)
        return JSONResponse(answer.model_dump(mode="json", exclude_none=True))

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events, named as OpenAI names them; an error is one, too."""
        ended = False
        try:
            async for event in self._events(pause=PAUSE_SECONDS):
                if event is None:
                    yield b": still here\n\n"
                elif event.kind == "partial":
                    yield await run_in_threadpool(self._partial, event)
                elif event.kind == "picture":
                    yield await run_in_threadpool(self._completed, event.data["id"])
            row = await run_in_threadpool(self._studio.jobs.find, self._row.id, self._caller)
            ended = row.status not in UNFINISHED
            for picture in row.pictures:
                if picture.id not in self._sent:
                    yield await run_in_threadpool(self._completed, picture.id)
            if row.status != "done":
                yield sse("error", {"type": "error", **_failure(row).body})
        finally:
            if not ended:
                await self._give_up()

    async def _events(self, *, pause: float) -> AsyncIterator[Event | None]:
        """What happens to the job until it ends, or until the server stops."""
        hub, owner, id = self._studio.hub, self._caller.owner, self._row.id
        with hub.subscribe(owner, job=id, internal=True) as subscription:
            row = await run_in_threadpool(self._studio.jobs.find, id, self._caller)
            if row.status not in UNFINISHED:
                return
            async for event in subscription.events(pause):
                yield event
                if event is not None and event.kind == "end":
                    return

    async def _give_up(self) -> None:
        """Nobody waits for the pictures any more. When the server stops, they are drawn later."""
        if not self._may_come_back and not self._studio.jobs.draining:
            self._studio.engine.cancel(self._row.id)

    def _partial(self, event: Event) -> bytes:
        image: int = event.data["image"]
        number = self._partials[image] = self._partials.get(image, -1) + 1
        pixels: PicturePixels = event.data["pixels"]
        height, width = pixels.shape[:2]
        told = self._facts("partial_image", f"{width}x{height}")
        told["b64_json"] = base64_of(pixels, self._format, self._body.output_compression)
        told |= {"partial_image_index": number, "petzval": {"image": image}}
        return sse(told["type"], told)

    def _completed(self, id: str) -> bytes:
        self._sent.add(id)
        row = self._picture(id)
        told = self._facts("completed", f"{row.width}x{row.height}")
        told["b64_json"] = self._base64(row)
        told["usage"] = _usage([row]).model_dump(mode="json")
        told["petzval"] = describe_picture(row).model_dump(mode="json")
        return sse(told["type"], told)

    def _facts(self, kind: str, size: str) -> dict[str, Any]:
        return {
            "type": f"image_generation.{kind}",
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": self._format,
            "quality": _quality(self._body),
            "size": size,
        }

    def _answer(self, row: JobRow) -> ImagesAnswer:
        first = row.pictures[0]
        return ImagesAnswer(
            created=int(row.created),
            output_format=self._format,
            quality=_quality(self._body),
            size=f"{first.width}x{first.height}",
            data=tuple(self._image(picture) for picture in row.pictures),
            usage=_usage(row.pictures),
        )

    def _image(self, row: PictureRow) -> ImageAnswer:
        if self._body.response_format == "url":
            base = str(self._request.base_url).rstrip("/")
            url = base + self._studio.links.signed(row.id, self._format)
            return ImageAnswer(url=url, petzval=describe_picture(row))
        return ImageAnswer(b64_json=self._base64(row), petzval=describe_picture(row))

    def _base64(self, row: PictureRow) -> str:
        data = self._studio.jobs.file_of(row, self._format, self._body.output_compression)
        return base64.b64encode(data).decode("ascii")

    def _picture(self, id: str) -> PictureRow:
        row = self._studio.store.picture(id, self._caller.owner)
        assert row is not None, "a picture is kept before it is told"
        return row


def _quality(body: ImagesRequest) -> str:
    quality = body.quality or "auto"
    return _OLD_QUALITIES.get(quality, quality)


def _usage(rows: Sequence[PictureRow]) -> Usage:
    tokens = sum(Resolution(row.height, row.width).num_tokens for row in rows)
    return Usage(output_tokens=tokens, total_tokens=tokens)


def _failure(row: JobRow) -> ApiError:
    """Why a job has no answer."""
    if row.status in UNFINISHED:
        return ApiError(
            503,
            f"the server is stopping; job {row.id} goes on when it is back",
            kind="server_error",
            code="stopping",
            retry_after=5,
        )
    if row.status == "cancelled":
        return ApiError(409, "the job was cancelled", code="cancelled")
    error = row.error or {}
    kind, code = str(error.get("type", "server_error")), error.get("code")
    status = 504 if code == "timeout" else 400 if kind == "invalid_request_error" else 500
    return ApiError(status, str(error.get("message", "the job failed")), kind=kind, code=code)
