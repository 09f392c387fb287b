"""How a server is set up, as one value."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from petzval.config import MEBIBYTE, check_ranges, setting
from petzval.inference.mark import check_mark

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names in a Host header that can only mean this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one caller may ask for; a key may have its own.

    Attributes:
        max_pictures: of one job.
        max_pixels: of one picture.
        max_steps: of one picture.
        max_waiting: jobs that wait at a time.
        jobs_per_minute: on average; bursts may use a minute's worth at once. A picture that has no
            room counts as well: to find that out takes time.
        weight: share of the device in proportion to other callers'.
    """

    max_pictures: int = setting(10, minimum=1, maximum=1024)
    max_pixels: int = setting(1440 * 1440, minimum=256)
    max_steps: int = setting(100, minimum=1, maximum=1000)
    max_waiting: int = setting(64, minimum=1)
    jobs_per_minute: float = setting(600.0, minimum=0.1)
    weight: float = setting(1.0, minimum=0.01, maximum=100)

    def __post_init__(self) -> None:
        check_ranges(self, where="limits")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How a server is set up.

    Attributes:
        folder: of jobs, keys and pictures; made where it is missing.
        host, port: where it listens.
        names: further names in Host headers that mean this server, such as "studio.example.org".
        keys: whether callers need one; None: unless the host is this machine alone.
        limits: of callers whose key has none of its own.
        body_bytes: of a request in JSON.
        picture_bytes: of a picture that is sent.
        body_seconds: a request must have arrived this long after its first byte.
        max_connections: open at a time.
        wait_seconds: a job that waits longer has failed.
        draw_seconds: a job that is drawn for longer has failed.
        drain_seconds: what is being drawn may take this long to end when the server stops.
        keep_deleted_seconds: a deleted picture can be restored for this long.
        aliases: further names of models: name → model, for programs that insist on one.
        log_prompts: write prompts into the log.
        mark: words in the corner of every picture, see `inference.mark`; blank for none.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = setting(8000, minimum=0, maximum=65535)
    names: tuple[str, ...] = ()
    keys: bool | None = None
    limits: Limits = Limits()
    body_bytes: int = setting(MEBIBYTE, minimum=1024)
    picture_bytes: int = setting(32 * MEBIBYTE, minimum=1024)
    body_seconds: float = setting(20.0, minimum=0.01)
    max_connections: int = setting(512, minimum=1)
    wait_seconds: float = setting(24 * 3600.0, minimum=0.01)
    draw_seconds: float = setting(3600.0, minimum=0.01)
    drain_seconds: float = setting(30.0, minimum=0)
    keep_deleted_seconds: float = setting(24 * 3600.0, minimum=0)
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    log_prompts: bool = False
    mark: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, where="server")
        object.__setattr__(self, "mark", check_mark(self.mark))

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can reach the server."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_keys(self) -> bool:
        """Whether callers need a key."""
        return not self.is_local if self.keys is None else self.keys
