"""Every HTTP request has an id, is counted and, where wanted, logged and traced. Plain ASGI middleware, so that
disconnects still reach the handlers."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ladle.server.envelopes import of_anthropic
from ladle.server.state import ServerState
from ladle.server.watch import request_context
from ladle.server.watch.request_context import RequestContext

logger = logging.getLogger("ladle.access")

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


_PROBES = ("/ready", "/health")


class Observed:
    """Around everything but Starlette's last resort, which answers 500 where a handler raised."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: ServerState = scope["app"].state.server
        headers = Headers(scope=scope)
        context = request_context.begin(headers.get("x-request-id", ""), scope["path"])
        start, status = time.monotonic(), 500

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["x-request-id"] = context.id
                if of_anthropic(context.path):  # where its clients look for it
                    added["request-id"] = context.id
            await send(message)

        state.metrics.active.inc()
        with state.tracing.request(scope["method"], dict(headers)) as span:
            try:
                await self._app(scope, receive, labelled)
            finally:
                state.metrics.active.dec()
                seconds = time.monotonic() - start
                path = _template(scope)
                method = scope["method"] if scope["method"] in _METHODS else "other"
                state.metrics.http_requests.labels(method=method, path=path, status=str(status)).inc()
                state.metrics.http_seconds.labels(path=path).observe(seconds)
                span.end_of_request(method, path, status, context)
                if state.settings.access_log:
                    _log(scope, status, seconds, context)


def _template(scope: Scope) -> str:
    """The path of the route that answered, of which there are few; ``other`` where none did."""
    return getattr(scope.get("route"), "path", "other")


def _log(scope: Scope, status: int, seconds: float, context: RequestContext) -> None:
    # As it came: percent-encoded, so that it cannot break lines. Without the query, which may hold anything.
    path = (scope.get("raw_path") or b"").decode("latin-1")
    facts = {"method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 6), **context.facts}
    # Probes come every few seconds, and what they say is in the metrics.
    level = logging.DEBUG if path in _PROBES else logging.INFO
    logger.log(level, "%s %s %d", scope["method"], path, status, extra={"facts": facts})
