"""A whole server on a loopback port, in a thread of the test's process."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx2

from petzval.inference.engine import Drawer, Engine
from petzval.server.app import create_app
from petzval.server.run import StudioServer, listen
from petzval.server.settings import ServerSettings
from petzval.server.state import Studio
from tests.server.scripted import ScriptedDrawer
from tests.support import PATIENCE


@dataclass(kw_only=True, eq=False)
class Running:
    """A server that answers, and what is in it."""

    url: str
    client: httpx2.Client
    drawer: ScriptedDrawer
    studio: Studio
    server: StudioServer
    thread: threading.Thread

    def submit(self, **body: Any) -> dict[str, Any]:
        """Ask for a job and expect it to be accepted."""
        answer = self.client.post("/v1/jobs", json={"prompt": "a fox"} | body)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def wait(self, job: str) -> dict[str, Any]:
        """The job, once it has ended."""
        with self.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
            for line in stream.iter_lines():
                if line == "event: end":
                    break
        return self.client.get(f"/v1/jobs/{job}").json()


@contextmanager
def running(
    folder: Path,
    drawer: Drawer | Sequence[Drawer] | None = None,
    engine: dict[str, Any] | None = None,
    port: int = 0,
    parts: dict[str, Any] | None = None,
    **settings: Any,
) -> Generator[Running]:
    """Start a server and stop it gently at the end of the block; port 0 takes a free one.

    Args:
        drawer: one, or one for each device; left out, a scripted one.
        engine: options of `Engine`.
        parts: further arguments of `create_app`.
        settings: of `ServerSettings`.
    """
    drawers = list(drawer) if isinstance(drawer, Sequence) else [drawer or ScriptedDrawer()]
    made = ServerSettings(folder=folder, port=port, drain_seconds=60.0, **settings)
    app = create_app(made, Engine(drawers, **(engine or {})), **(parts or {}))
    started = threading.Event()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        started.set()

    server = StudioServer(app, listen(made), ready)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(PATIENCE)
    with httpx2.Client(base_url=urls[0], timeout=PATIENCE, trust_env=False) as client:
        try:
            yield Running(
                url=urls[0],
                client=client,
                drawer=cast("ScriptedDrawer", drawers[0]),
                studio=app.state.studio,
                server=server,
                thread=thread,
            )
        finally:
            for each in drawers:
                if isinstance(each, ScriptedDrawer):
                    each.gate.set()
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()
