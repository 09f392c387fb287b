"""Bodies in JSON, read as the house reads it: UTF-8, no name twice, no NaN, not nested for ever."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from petzval.config import parse_json
from petzval.errors import ConfigError
from petzval.server.errors import ApiError


class StrictRequest(Request):
    """A request whose body must be JSON without tricks."""

    async def json(self) -> Any:
        """The body.

        Raises:
            ApiError: 400.
        """
        try:
            return parse_json((await self.body()).decode("utf-8"), where="the body")
        except UnicodeDecodeError:
            raise ApiError(400, "the body is not UTF-8", code="invalid_json") from None
        except ConfigError as error:
            raise ApiError(400, error.message, code="invalid_json") from None


class StrictRoute(APIRoute):
    """A route whose body is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI made, given the strict request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle
