"""Server-sent events: framing, and a response whose producer is closed the moment its client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ladle.server.http.disconnect import first_of, gone

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
"""What JSON leaves as it is and some clients (httpx's ``iter_lines``, Python's ``splitlines``) end a line at."""


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event, on one ``data:`` line whatever its reader takes for a line: what JSON does not escape, this does.
    ``name``: what the API calls it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_BREAKS)
    name_line = b"" if name is None else b"event: " + name.encode() + b"\n"
    return name_line + b"data: " + text.encode() + b"\n\n"


class EventStream(Response):
    """Sends ``first`` and then what ``rest`` yields, until the end or until the client is gone.

    Starlette's own StreamingResponse leaves it to the server whether a generator hears of a disconnect; here the
    generator is always closed before the response ends, so its ``finally`` can free what it holds.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None
    ) -> None:
        # nginx would otherwise collect events before it passes them on.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def produce() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for chunk in self._rest:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await first_of(asyncio.create_task(produce()), asyncio.create_task(gone(receive)))
        except OSError:  # how some servers say that the client is gone
            pass
        finally:
            await self._rest.aclose()
