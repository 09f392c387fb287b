"""A server in a process of its own, made to be killed: `kill -9` at any moment."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from petzval.inference.engine import Engine
from petzval.server.app import create_app
from petzval.server.run import listen, run_app
from petzval.server.settings import ServerSettings
from tests.server.scripted import ScriptedDrawer

REPOSITORY = Path(__file__).resolve().parents[2]


def _serve(folder: Path, seconds: float, told: Connection, options: dict[str, Any]) -> None:
    settings = ServerSettings(folder=folder, port=0, **options)
    app = create_app(settings, Engine([ScriptedDrawer(seconds=seconds)]))
    run_app(app, listen(settings), told.send)


@contextmanager
def killable(folder: Path, *, seconds: float, **settings: Any) -> Generator[str]:
    """The address of a server that is killed, not stopped, at the end of the block.

    Args:
        seconds: of a step.
        settings: of `ServerSettings`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.server.killable"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, seconds, theirs, settings), daemon=True)
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), path]))
    try:
        process.start()
    finally:
        os.environ["PYTHONPATH"] = path
    try:
        assert ours.poll(60), "the server did not start within a minute"
        yield ours.recv()
    finally:
        process.kill()
        process.join()
