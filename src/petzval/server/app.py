"""The web application around an engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import petzval
from petzval.inference.engine import Engine
from petzval.server import reference
from petzval.server.checks import ContentCheck
from petzval.server.errors import ApiError, error_body
from petzval.server.events import Hub
from petzval.server.guard import Guard
from petzval.server.jobs import Jobs
from petzval.server.journal import note
from petzval.server.keys import Keys
from petzval.server.links import Links
from petzval.server.lock import FolderLock
from petzval.server.metrics import Metrics
from petzval.server.provenance import Provenance
from petzval.server.routes import images, jobs, links, models, page, pictures, recipes
from petzval.server.routes import state as state_routes
from petzval.server.settings import ServerSettings
from petzval.server.state import Studio
from petzval.server.store import Store

_CLEANING_SECONDS = 600.0


def create_app(
    settings: ServerSettings,
    engine: Engine,
    *,
    checks: Sequence[ContentCheck] = (),
    provenance: Provenance | None = None,
) -> FastAPI:
    """The studio around an engine, which it starts and closes.

    Args:
        checks: of prompts and pictures; where there are any, there are no previews.
        provenance: signs pictures.

    Raises:
        ServerError: the folder cannot be used, or another server uses it.
    """
    store = Store(settings.folder)
    lock = FolderLock(settings.folder)
    hub = Hub()
    metrics = Metrics(engine)
    studio = Studio(
        settings=settings,
        engine=engine,
        store=store,
        hub=hub,
        keys=Keys(store),
        links=Links(settings.folder),
        metrics=metrics,
        lock=lock,
        jobs=Jobs(settings, store, engine, hub, metrics, checks=checks, provenance=provenance),
    )
    app = FastAPI(
        title="Petzval",
        version=petzval.__version__,
        summary="Draw pictures from words: OpenAI's Images API, and jobs with progress.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.studio = studio
    app.openapi = partial(reference.describe, app)
    for routes in (images, jobs, pictures, links, recipes, models, state_routes, page):
        app.include_router(routes.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(Guard, settings=settings, metrics=metrics)  # pyright: ignore[reportArgumentType]
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Clean up what was left behind, go on with unfinished jobs; at the end let pictures finish."""
    studio: Studio = app.state.studio
    await run_in_threadpool(studio.store.remove_orphans)
    studio.engine.start()
    resumed = await run_in_threadpool(studio.jobs.resume)
    note("started", resumed=resumed, keys=studio.settings.needs_keys)
    cleaning = asyncio.create_task(_clean(studio))
    try:
        yield
    finally:
        studio.jobs.draining = True
        cleaning.cancel()
        studio.hub.close()
        await run_in_threadpool(studio.engine.close, studio.settings.drain_seconds)
        studio.store.close()
        studio.lock.release()


async def _clean(studio: Studio) -> None:
    """Remove pictures that were deleted long enough ago, every ten minutes."""
    while True:
        before = time.time() - studio.settings.keep_deleted_seconds
        await run_in_threadpool(studio.store.remove_deleted, before)
        await asyncio.sleep(_CLEANING_SECONDS)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    if request.method == "POST" and error.status_code in (429, 503):
        request.app.state.studio.metrics.refused(error.code)
    return JSONResponse(error.body, error.status_code, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first of the mistakes in a request; what was sent is not repeated."""
    del request
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{place[:200]}: {first['msg']}" if place else str(first["msg"])
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    body = error_body(message, "invalid_request_error", code=code, param=place[:200] or None)
    return JSONResponse(body, 400)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, HTTPException)
    body = error_body(str(error.detail), "invalid_request_error")
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """A bug of ours: logged by the server with its traceback, told without."""
    del request, error
    return JSONResponse(error_body("the server made a mistake", "server_error"), 500)
