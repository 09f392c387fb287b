"""Connections: a client that says nothing is let go, and as many are open as may be."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from petzval.server.errors import error_body

HEAD_SECONDS = 10.0
"""For the head of a request, from the connection's opening or the head's first byte."""

LINGER_SECONDS = 1.0
"""For a client that is turned away to read why: closed at once, its own bytes would undo it."""


class Crowd:
    """Who is connected, up to a limit.

    Where it is reached, a newcomer takes the place of the one that has been silent for longest:
    first of those that never asked for anything, then of those between two requests. Where all are
    being answered the newcomer is turned away. So silent connections, however many, lock nobody
    out: whoever asks is heard.

    Args:
        limit: connections that may be open at a time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Dictionaries for their order; each connection is in one of them.
        self._silent: dict[TimedProtocol, None] = {}
        self._kept: dict[TimedProtocol, None] = {}
        self._busy: dict[TimedProtocol, None] = {}
        self._leaving: dict[TimedProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._silent) + len(self._kept) + len(self._busy)

    def admit(self, newcomer: TimedProtocol) -> bool:
        """Make room for a connection, which has said nothing yet; False where there is none."""
        if len(self) >= self.limit:
            longest = next(iter(self._silent or self._kept), None)
            if longest is None:
                return False
            self.leave(longest)
            longest.hang_up()
        self._silent[newcomer] = None
        return True

    def busy(self, one: TimedProtocol) -> None:
        """It asked for something, and is being answered."""
        self.leave(one)
        self._busy[one] = None

    def kept(self, one: TimedProtocol) -> None:
        """It has its answer, and may ask again."""
        self.leave(one)
        self._kept[one] = None

    def turn_away(self, newcomer: TimedProtocol) -> bool:
        """It was not admitted, and may linger to hear why; False where too many do."""
        if len(self._leaving) >= self.limit:
            return False
        self._leaving[newcomer] = None
        return True

    def leave(self, one: TimedProtocol) -> None:
        """It goes, if it was there."""
        for group in (self._silent, self._kept, self._busy, self._leaving):
            group.pop(one, None)


class TimedProtocol(H11Protocol):
    """Uvicorn's protocol, which by itself waits for ever for the end of a head.

    Args:
        crowd: of the server's connections.
    """

    def __init__(self, *arguments: Any, crowd: Crowd, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._crowd = crowd
        self._deadline: asyncio.TimerHandle | None = None
        self._is_turned_away = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Wait for a head from now on; or say that there is no room."""
        super().connection_made(transport)
        if self._crowd.admit(self):
            self._arm(HEAD_SECONDS)
        else:
            self._turn_away()

    def data_received(self, data: bytes) -> None:
        """A head that is complete makes a cycle; until then the time runs."""
        if self._is_turned_away:
            return
        super().data_received(data)
        if self._is_answering:
            self._disarm()
            self._crowd.busy(self)
        elif self._deadline is None:
            self._arm(HEAD_SECONDS)

    def on_response_complete(self) -> None:
        """Between requests the time that a connection may be kept alive runs, uvicorn's own."""
        self._disarm()
        super().on_response_complete()
        if self.transport.is_closing():
            self._crowd.leave(self)
        elif not self._is_answering:  # else the next request had come already
            self._crowd.kept(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for any more."""
        self._disarm()
        self._crowd.leave(self)
        super().connection_lost(exc)

    def hang_up(self) -> None:
        """Close the connection, if it is not closed."""
        if not self.transport.is_closing():
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        cycle = cast("Any", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _turn_away(self) -> None:
        self._is_turned_away = True
        if not self._crowd.turn_away(self):
            self.transport.abort()
            return
        self.transport.write(_NO_ROOM)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm(LINGER_SECONDS)

    def _arm(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self.hang_up)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _refusal() -> bytes:
    """An answer in the API's own shape, whatever would have been asked."""
    told = error_body(
        "as many connections as may be open are busy; try again",
        "server_error",
        code="too_many_connections",
    )
    body = json.dumps(told).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nretry-after: 1\r\ncache-control: no-store\r\n"
        "x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


_NO_ROOM = _refusal()
