"""What stands before every route: names, sizes, types and times of requests, headers of answers.

Plain ASGI, so that a refused body is never read and a stream is never gathered.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from petzval.server.errors import ApiError
from petzval.server.metrics import Metrics
from petzval.server.settings import LOCAL_HOSTS, ServerSettings

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Nothing inline, nothing from elsewhere, nobody may frame the page."""

SECURITY_HEADERS: dict[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}

_JSON = ("application/json", "application/json;charset=utf-8")
_PICTURES = ("image/png", "image/jpeg", "image/webp")
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_METHODS = _WITHOUT_BODY | {"POST", "PATCH", "PUT"}


class Guard:
    """Refuses what no route should see; adds the security headers to every answer."""

    def __init__(self, app: Application, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._settings = settings
        self._names = {name.lower() for name in (*LOCAL_HOSTS, *settings.names)}
        if not settings.is_local:
            self._names.add(settings.host.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict[str, list[str]]()
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        body: _Body | None = None
        started = False
        began = time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._note(scope, message["status"], time.perf_counter() - began)
                message["headers"] = [*message.get("headers", ()), *_security_headers(message)]
            await send(message)

        try:
            self._check_host(headers)
            _check_site(headers)
            body = _Body(receive, *self._check_body(scope, headers))
            await self._app(scope, body.receive, answer)
        except ApiError as error:
            if started:
                raise
            await _refuse(error, answer)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request under its route's pattern: paths are the client's, and without end."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.answered(method, route, status, seconds)

    def _check_host(self, headers: dict[str, list[str]]) -> None:
        """Only our own names: a page of another site may point its name at this machine."""
        given = headers.get("host", [])
        if len(given) == 1 and _without_port(given[0]).lower() in self._names:
            return
        name = ", ".join(given)[:80]
        raise ApiError(
            421,
            f"this server is not called {name!r}; start it with --name to give it another name",
            code="wrong_host",
        )

    def _check_body(self, scope: Scope, headers: dict[str, list[str]]) -> tuple[int, float]:
        """How many bytes may come, and in which time; refused where the head says it all."""
        length = headers.get("content-length", ["0"])[0]
        chunked = "transfer-encoding" in headers
        has_body = chunked or length != "0"
        seconds = self._settings.body_seconds
        if not has_body or scope["method"] in _WITHOUT_BODY:
            return (0 if scope["method"] in _WITHOUT_BODY else self._settings.body_bytes), seconds
        if headers.get("content-encoding", ["identity"]) != ["identity"]:
            raise ApiError(415, "compressed bodies are not accepted", code="unsupported_encoding")
        kind = ",".join(headers.get("content-type", [])).lower().replace(" ", "").replace('"', "")
        if kind in _PICTURES:
            limit = self._settings.picture_bytes
        elif kind in _JSON:
            limit = self._settings.body_bytes
        else:
            raise ApiError(
                415,
                "a body is JSON (Content-Type: application/json) or a picture",
                code="unsupported_media_type",
            )
        if not chunked and length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        return limit, seconds


def _check_site(headers: dict[str, list[str]]) -> None:
    """Browsers say which site asks: another one may link to the page, and nothing else."""
    site, mode = (headers.get(f"sec-fetch-{name}", [""])[0] for name in ("site", "mode"))
    if site in ("cross-site", "same-site") and mode != "navigate":
        raise ApiError(403, "pages of other sites are not answered", code="wrong_site")


class _Body:
    """The body of a request, counted and timed as it comes in."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._limit, self._left = receive, limit, limit
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._complete = False

    async def receive(self) -> Message:
        """The next part; once all is there, the news that the client went away."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, "the body came too slowly", code="request_timeout") from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise _too_large(self._limit)
            self._complete = not message.get("more_body", False)
        return message


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit:,} bytes", code="request_too_large")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _security_headers(message: Message) -> Iterable[tuple[bytes, bytes]]:
    given = {name for name, _ in message.get("headers", ())}
    for name, value in SECURITY_HEADERS.items():
        if name.encode() not in given:
            yield name.encode(), value.encode()
    if b"cache-control" not in given:
        yield b"cache-control", b"no-store"


async def _refuse(error: ApiError, send: Send) -> None:
    body = json.dumps(error.body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in (error.headers or {}).items()),
    ]
    await send({"type": "http.response.start", "status": error.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
