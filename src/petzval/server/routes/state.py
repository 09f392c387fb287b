"""`/health`, `/ready` and `/metrics` for those who look after the server, `/docs` for all."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from petzval.server.errors import ApiError
from petzval.server.metrics import CONTENT_TYPE
from petzval.server.reference import page
from petzval.server.state import TheCaller, TheStudio

router = APIRouter(tags=["operation"])


@router.get("/health")
def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready")
def ready(studio: TheStudio) -> dict[str, str]:
    """The server accepts jobs."""
    if studio.jobs.draining or not studio.engine.is_working:
        raise ApiError(503, "not ready", kind="server_error", code="not_ready", retry_after=5)
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
def metrics(studio: TheStudio, caller: TheCaller) -> Response:
    """The server's numbers for Prometheus; needs a key where others do."""
    del caller
    return Response(studio.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    """The API for people."""
    return HTMLResponse(page(request.app.openapi()))
