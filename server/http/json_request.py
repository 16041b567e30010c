"""Request bodies as strict JSON: no NaN or Infinity, no broken Unicode, a JSON content type."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from ladle.server.errors import ApiError

_LONG = 1 << 18  # bytes from which parsing leaves the event loop


class StrictRequest(Request):
    """A request whose ``json()`` refuses what the JSON standard refuses (Python's parser takes NaN and lone
    surrogates)."""

    async def body(self) -> bytes:
        body = await super().body()
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Forms and plain text are what a foreign web page could send to a local server without asking the browser.
        if body and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise ApiError(415, f"Content-Type: {kind or 'missing'!r} is not allowed; allowed: application/json")
        return body

    async def json(self) -> Any:
        body = await self.body()
        return await asyncio.to_thread(parse, body) if len(body) >= _LONG else parse(body)


class JsonRoute(APIRoute):
    """A route that reads its body through StrictRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def parse(body: bytes) -> Any:
    """The JSON value in ``body``. Raises ApiError (400) saying where it breaks."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"body: not valid JSON: {error}", code="invalid_json") from None
