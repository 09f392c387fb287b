"""`/v1/jobs` and `/v1/events`: ask for pictures, see how it goes, change one's mind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import StringConstraints

from petzval.server.events import Subscription, sse
from petzval.server.keys import Caller
from petzval.server.schemas import Job, JobPage, JobRequest, Status
from petzval.server.state import Studio, TheCaller, TheStudio
from petzval.server.store import UNFINISHED
from petzval.server.strict_json import StrictRoute

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=StrictRoute)

PAUSE_SECONDS = 15.0
"""A comment is sent after this long without an event, so that nobody on the way gives up."""

IdempotencyKey = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=255)] | None,
    Header(description="The same key with the same request is the same job."),
]
LastEventId = Annotated[
    Annotated[str, StringConstraints(max_length=64)] | None,
    Header(alias="Last-Event-ID", description="The last event that was seen before."),
]
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.post("/jobs", status_code=202)
def create_job(
    body: JobRequest,
    response: Response,
    studio: TheStudio,
    caller: TheCaller,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Ask for pictures. The answer comes at once; the job survives a restart of the server."""
    row, _ = studio.jobs.accept(body, caller, idempotency_key=idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return studio.jobs.following.describe(row)


@router.get("/jobs")
def list_jobs(
    studio: TheStudio,
    caller: TheCaller,
    status: Annotated[list[Status] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(max_length=64)] = None,
) -> JobPage:
    """The caller's jobs, newest first."""
    rows = studio.store.jobs(caller.owner, statuses=status or (), limit=limit + 1, before=before)
    positions = studio.engine.positions()
    data = tuple(studio.jobs.following.describe(row, positions) for row in rows[:limit])
    return JobPage(data=data, has_more=len(rows) > limit)


@router.get("/jobs/{id}")
def get_job(id: str, studio: TheStudio, caller: TheCaller) -> Job:
    """One job, as it stands."""
    return studio.jobs.following.describe(studio.jobs.find(id, caller))


@router.post("/jobs/{id}/cancel")
def cancel_job(id: str, studio: TheStudio, caller: TheCaller) -> Job:
    """Stop a job within a step. Its finished pictures stay; one that has ended stays as it is."""
    studio.jobs.cancel(id, caller)
    return studio.jobs.following.describe(studio.jobs.find(id, caller))


@router.get("/jobs/{id}/events", response_class=StreamingResponse)
async def job_events(
    id: str, studio: TheStudio, caller: TheCaller, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Server-sent events of one job: `status`, `progress`, `preview`, `picture`, `end`."""
    await run_in_threadpool(studio.jobs.find, id, caller)
    stream = _job_stream(studio, caller, id, last_event_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)


@router.get("/events", response_class=StreamingResponse)
async def all_events(
    studio: TheStudio, caller: TheCaller, last_event_id: LastEventId = None
) -> StreamingResponse:
    """The same events, of all jobs of the caller."""
    stream = _all_stream(studio, caller, last_event_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)


async def _job_stream(
    studio: Studio, caller: Caller, id: str, after: str | None
) -> AsyncIterator[bytes]:
    with studio.hub.subscribe(caller.owner, job=id, after=after) as subscription:
        row = await run_in_threadpool(studio.jobs.find, id, caller)
        job = (await run_in_threadpool(studio.jobs.following.describe, row)).model_dump(mode="json")
        if not subscription.resumed:
            yield sse("status", job)
        if row.status not in UNFINISHED:
            yield sse("end", job)
            return
        async for part in _encoded(subscription):
            yield part
            if b"event: end\n" in part[:80]:
                return


async def _all_stream(studio: Studio, caller: Caller, after: str | None) -> AsyncIterator[bytes]:
    with studio.hub.subscribe(caller.owner, after=after) as subscription:
        if not subscription.resumed:
            for job in await run_in_threadpool(_open_jobs, studio, caller):
                yield sse("status", job.model_dump(mode="json"))
        async for part in _encoded(subscription):
            yield part


def _open_jobs(studio: Studio, caller: Caller) -> list[Job]:
    rows = studio.store.jobs(caller.owner, statuses=UNFINISHED, limit=200, before=None)
    positions = studio.engine.positions()
    return [studio.jobs.following.describe(row, positions) for row in reversed(rows)]


async def _encoded(subscription: Subscription) -> AsyncIterator[bytes]:
    async for event in subscription.events(PAUSE_SECONDS):
        yield b": still here\n\n" if event is None else event.encode()
