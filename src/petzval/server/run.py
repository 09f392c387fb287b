"""A server as a process: the engine is loaded, the application runs, signals stop it gently."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import uvicorn
from fastapi import FastAPI

from petzval.errors import ServerError
from petzval.inference.drawer import PipelineDrawer
from petzval.inference.engine import CAPACITY, Engine
from petzval.server.app import create_app
from petzval.server.checks import load_checks
from petzval.server.connection import Crowd, TimedProtocol
from petzval.server.journal import configure, note
from petzval.server.pool import PoolSettings, start_pool, stop_pool
from petzval.server.provenance import Provenance
from petzval.server.settings import ServerSettings
from petzval.server.state import Studio

_OTHER_FILES = 4096
"""Files of everything else: the database, weights, and what comes in at one turn of the loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What `petzval serve` was asked for.

    Attributes:
        models: names or folders; the first is the default.
        loras: name → file.
        device, dtype: as in `Pipeline.load`.
        threads: torch's; None leaves the machine's default.
        capacity, batch_size: of the engine.
        compile, memory, ram, quantise: as in `PipelineDrawer`.
        checks: names of content checks, see `checks.load_checks`.
        certificate, certificate_key, algorithm: as in `Provenance`; None signs nothing.
        pool: draw with Ray Serve's replicas, and not in this process.
    """

    settings: ServerSettings
    models: tuple[str, ...] = ("mini",)
    loras: Mapping[str, Path] = field(default_factory=dict[str, Path])
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    capacity: int = CAPACITY
    batch_size: int = 1
    compile: bool = False
    memory: str | None = None
    ram: str | None = None
    quantise: str = "exact"
    checks: tuple[str, ...] = ()
    certificate: Path | None = None
    certificate_key: Path | None = None
    algorithm: str = "es256"
    pool: PoolSettings | None = None


def serve(serving: Serving, ready: Callable[[str], object]) -> None:
    """Serve until a signal says stop.

    Args:
        ready: told the address once, when requests are answered.

    Raises:
        ServerError: the address cannot be listened at, or the folder cannot be used.
        RequestError, CheckpointError, PlacementError: as `PipelineDrawer`.
    """
    configure()
    settings = serving.settings
    listening = listen(settings)
    with closing(listening):
        checks = load_checks(serving.checks)
        provenance = _provenance(serving)
        try:
            app = create_app(settings, _load(serving), checks=checks, provenance=provenance)
            run_app(app, listening, ready)
        finally:
            if serving.pool is not None:
                stop_pool()
    note("stopped")


def _provenance(serving: Serving) -> Provenance | None:
    certificate, key = serving.certificate, serving.certificate_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ServerError(
            "signing needs a certificate and its key", "give --certificate and --certificate-key"
        )
    return Provenance(certificate, key, algorithm=serving.algorithm)


def _load(serving: Serving) -> Engine:
    if serving.threads is not None:
        torch.set_num_threads(serving.threads)
    if serving.pool is not None:
        drawers = start_pool(serving.pool)
        return Engine(drawers, capacity=serving.capacity, batch_size=serving.batch_size)
    drawer = PipelineDrawer(
        serving.models,
        loras=serving.loras,
        device=serving.device,
        dtype=serving.dtype,
        batch_size=serving.batch_size,
        compile=serving.compile,
        memory=serving.memory,
        ram=serving.ram,
        quantise=serving.quantise,
    )
    drawer.warm_up()
    return Engine([drawer], capacity=serving.capacity, batch_size=serving.batch_size)


def run_app(app: FastAPI, listening: socket.socket, ready: Callable[[str], object]) -> None:
    """Answer requests at a socket until a signal says stop, or `StudioServer.stop` is called."""
    StudioServer(app, listening, ready).run()


class StudioServer(uvicorn.Server):
    """Says when it is ready, and lets open streams end when it is to stop."""

    def __init__(
        self, app: FastAPI, listening: socket.socket, ready: Callable[[str], object]
    ) -> None:
        studio: Studio = app.state.studio
        limit = studio.settings.max_connections
        allow_files(2 * limit + _OTHER_FILES)  # as many again may be on their way out
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("Any", partial(TimedProtocol, crowd=Crowd(limit))),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(studio.settings.drain_seconds) + 1,
            )
        )
        self._studio = studio
        self._listening = listening
        self._ready = ready

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until it is stopped."""
        super().run(sockets=sockets or [self._listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets=sockets)
        if not self.should_exit:
            host, port = self._listening.getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def stop(self) -> None:
        """Accept no more jobs, end open streams, let what is being drawn end, then return."""
        self._studio.jobs.draining = True
        self._studio.hub.close()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: stop gently; a second one does not wait."""
        del sig, frame
        self.force_exit = self.should_exit
        self.stop()


def allow_files(number: int) -> None:
    """Let this process have that many files and sockets open, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # a system without such limits
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def listen(settings: ServerSettings) -> socket.socket:
    """The socket of a server.

    Raises:
        ServerError: the address cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.set_inheritable(True)
    except OSError as error:
        listening.close()
        raise ServerError(
            f"cannot listen at {settings.host}, port {settings.port}: {error.strerror or error}",
            "choose another with --host or --port",
        ) from error
    return listening
