"""What the API answers when it does not do what was asked, in the shape of OpenAI's API."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException

from petzval.errors import PetzvalError, PlacementError, QueueFullError, RequestError

RETRY_SECONDS = 5
"""After which a request that found the queue full may come again."""


class ApiError(HTTPException):
    """An answer that is not the one hoped for.

    Args:
        status: of HTTP.
        message: for a person.
        kind: OpenAI's `type`, such as "invalid_request_error".
        code: for programs.
        param: the part of the request that was wrong.
        retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        # Of Starlette's kind, since FastAPI lets no other through while a body comes in.
        super().__init__(status, message)
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = self._headers(retry_after)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return error_body(self.message, self.kind, code=self.code, param=self.param)

    def _headers(self, retry_after: int | None) -> dict[str, str]:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if self.status_code == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status_code in (408, 413):
            headers["Connection"] = "close"  # what is left of the body is not read
        return headers


def error_body(
    message: str, kind: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """`{"error": {…}}`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def api_error(error: PetzvalError) -> ApiError:
    """What an error of the house means to a caller."""
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            message,
            kind="rate_limit_error",
            code="queue_full",
            retry_after=RETRY_SECONDS,
        )
    if isinstance(error, RequestError):
        return ApiError(400, message, code="invalid_value")
    if isinstance(error, PlacementError):  # nothing is broken: the picture is too large
        return ApiError(400, message, code="does_not_fit")
    return ApiError(500, message, kind="server_error", code="server_error")


def not_found(what: str) -> ApiError:
    """There is no such thing, or it is somebody else's: the answer is the same."""
    return ApiError(404, f"there is no such {what}", code="not_found")
