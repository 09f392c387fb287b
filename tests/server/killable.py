"""A server in a process of its own, made to be killed: `kill -9` at any moment."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from petzval.inference.engine import Engine
from petzval.server import connection
from petzval.server.app import create_app
from petzval.server.run import listen, run_app
from petzval.server.settings import ServerSettings
from tests.server.scripted import ScriptedDrawer
from tests.support import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Killable:
    """Where it answers, and the number of its process."""

    url: str
    process: int


def _serve(
    folder: Path,
    seconds: float,
    head_seconds: float,
    told: Connection,
    options: dict[str, Any],
) -> None:
    connection.HEAD_SECONDS = head_seconds
    settings = ServerSettings(folder=folder, port=0, **options)
    app = create_app(settings, Engine([ScriptedDrawer(seconds=seconds)]))
    run_app(app, listen(settings), told.send)


@contextmanager
def killable(
    folder: Path,
    *,
    seconds: float,
    head_seconds: float = connection.HEAD_SECONDS,
    **settings: Any,
) -> Generator[Killable]:
    """A server that is killed, not stopped, at the end of the block.

    Args:
        seconds: of a step.
        head_seconds: for the head of a request.
        settings: of `ServerSettings`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.server.killable"])
    ours, theirs = context.Pipe()
    arguments = (folder, seconds, head_seconds, theirs, settings)
    process = context.Process(target=_serve, args=arguments, daemon=True)
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), path]))
    try:
        process.start()
    finally:
        os.environ["PYTHONPATH"] = path
    try:
        assert ours.poll(PATIENCE), "the server did not start"
        assert process.pid is not None
        yield Killable(url=ours.recv(), process=process.pid)
    finally:
        process.kill()
        process.join()
