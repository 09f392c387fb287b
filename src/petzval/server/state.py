"""What the routes share: the parts of one server, and who is calling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from petzval.inference.engine import Engine
from petzval.server.events import Hub
from petzval.server.jobs import Jobs
from petzval.server.keys import Caller, Keys
from petzval.server.links import Links
from petzval.server.lock import FolderLock
from petzval.server.metrics import Metrics
from petzval.server.settings import ServerSettings
from petzval.server.store import Store


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Studio:
    """The parts of one server."""

    settings: ServerSettings
    engine: Engine
    store: Store
    hub: Hub
    keys: Keys
    links: Links
    metrics: Metrics
    lock: FolderLock
    jobs: Jobs


def studio_of(request: Request) -> Studio:
    """The server that a request came to."""
    return request.app.state.studio


def caller_of(request: Request) -> Caller:
    """Who asks.

    Raises:
        ApiError: 401.
    """
    studio = studio_of(request)
    return studio.keys.caller(request.headers.get("authorization"), studio.settings)


TheStudio = Annotated[Studio, Depends(studio_of)]
TheCaller = Annotated[Caller, Depends(caller_of)]
