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
_VALUES = 16  # bytes of the largest body for each value that may be in one, and 128 for each name of a field
_FEWEST = 1 << 16


class StrictRequest(Request):
    """A request whose ``json()`` refuses what the JSON standard refuses (Python's parser takes NaN and lone
    surrogates)."""

    async def body(self) -> bytes:
        body = await super().body()
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Forms and plain text are what a foreign web page could send to a local server without asking the browser.
        if body and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            message = f"Content-Type: {kind or 'missing'!r} is not allowed; allowed: application/json"
            raise ApiError(415, message, code="unsupported_media_type")
        return body

    async def json(self) -> Any:
        body = await self.body()
        most = self.app.state.server.settings.max_body_bytes
        return await asyncio.to_thread(_read, body, most) if len(body) >= _LONG else _read(body, most)


class JsonRoute(APIRoute):
    """A route that reads its body through StrictRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            try:
                return await handler(StrictRequest(request.scope, request.receive))
            except RecursionError:
                raise ApiError(400, "body: nested too deeply to be read", code="invalid_json") from None

        return strict


def _read(body: bytes, most_bytes: int) -> Any:
    require_few_values(body, most_bytes)
    return parse(body)


def require_few_values(body: bytes, most_bytes: int) -> None:
    """Raise ApiError (400) for a body of so many values that making and checking them would hold everybody else up,
    whatever thread it happened on: one for every 16 bytes of the largest body is allowed, a name for every 128."""
    most_values = max(_FEWEST, most_bytes // _VALUES)
    most_names = max(_FEWEST // 8, most_bytes // (8 * _VALUES))
    if len(body) <= most_names:
        return
    count, names = _counted(body)
    if count <= most_values and names <= most_names:
        return
    # What looks like many may stand in texts.
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    texts = bare.count(b'"') // 2
    if texts <= most_values + most_names:
        count, names = _counted(b"".join(bare.split(b'"')[::2]))
    if count > most_values or names > most_names or texts > most_values + most_names:
        what = f"more than {most_values} values or {most_names} names of fields are not allowed in one body"
        raise ApiError(400, f"body: {what}", code="body_too_large")


def _counted(body: bytes) -> tuple[int, int]:
    """Values and names in JSON without texts; of one with texts, no fewer."""
    return body.count(b",") + body.count(b"[") + body.count(b"{"), body.count(b":")


def parse(body: bytes) -> Any:
    """The JSON value in ``body``. Raises ApiError (400) saying where it breaks."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"body: not valid JSON: {error}", code="invalid_json") from None
