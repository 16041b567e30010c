"""Requests as the handlers expect them: without a proxy's prefix, without HEAD, with bodies unpacked; and failures as
answers that what lies around the handlers still sees. Plain ASGI middleware, so that disconnects reach the handlers."""

from __future__ import annotations

import logging
import zlib

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ladle.server.api_errors import ApiError, internal
from ladle.server.http.slow_readers import ClientStalled

logger = logging.getLogger(__name__)

_GZIP = 16 + zlib.MAX_WBITS
_PACKED = ("gzip", "x-gzip")


class WithoutPrefix:
    """Takes ``prefix``, such as /ladle, off paths that begin with it: a proxy may do so, or leave it to the server. The
    prefix alone is where the page is, whose own addresses want the slash behind it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self._prefix and scope["method"] in ("GET", "HEAD"):
            query = scope["query_string"].decode("latin-1")
            await RedirectResponse(f"{self._prefix}/{query and f'?{query}'}")(scope, receive, send)
            return
        if scope["type"] == "http" and self._prefix and f"{scope['path']}/".startswith(f"{self._prefix}/"):
            scope = {**scope, "path": scope["path"][len(self._prefix) :] or "/"}
        await self._app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD with what GET would get, but for the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bare(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # A copy: what was asked stays known to whoever logs it, and the route that answers is told to them.
        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, bare)
        finally:
            scope["route"] = asked.get("route")


class Failures:
    """Turns what a handler let through into a 500 here, where headers for browsers are still put on it, and raises it
    again for the web server's log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def seen(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, seen)
        except ClientStalled:
            raise
        except Exception as error:
            if scope["type"] == "http" and not begun:
                logger.error("%s failed: %s", scope["method"], type(error).__name__)
                await internal().response()(scope, receive, send)
            raise


class Unpacked:
    """Unpacks bodies with Content-Encoding gzip, to at most ``limit`` bytes; 413 beyond, 415 for any other encoding."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        encoding = Headers(scope=scope).get("content-encoding", "").strip().lower()
        if encoding in ("", "identity"):
            await self._app(scope, receive, send)
            return
        if encoding not in _PACKED:
            message = f"Content-Encoding: {encoding[:100]!r} is not allowed; allowed: gzip, or none"
            error = ApiError(415, message, code="unsupported_media_type")
            await error.response()(scope, receive, send)
            return
        gone = (b"content-encoding", b"content-length")
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in gone]}
        await self._app(scope, _Unpacking(receive, self._limit).receive, send)


class _Unpacking:
    """One body. It may be packed in several parts, one after the other."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit
        self._part = zlib.decompressobj(_GZIP)
        self._fresh = True
        self._complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or self._complete:
            return message
        self._complete = not message.get("more_body", False)
        try:
            body = self._unpack(message.get("body", b""))
        except zlib.error as error:
            raise self._broken(str(error)) from None
        if self._complete and not self._fresh and not self._part.eof:
            raise self._broken("it ends too early")
        return {**message, "body": body}

    def _unpack(self, data: bytes) -> bytes:
        pieces = []
        while data:
            if self._part.eof:
                self._part = zlib.decompressobj(_GZIP)
            self._fresh = False
            # One more than is allowed, so that what is too much is noticed, however much it would be.
            pieces.append(self._part.decompress(data, self._left + 1))
            self._left -= len(pieces[-1])
            if self._left < 0:
                # What is left of it is not read, so the connection cannot carry another request.
                message = "body: larger than is allowed once it is unpacked"
                raise ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
            data = self._part.unused_data
        return b"".join(pieces)

    @staticmethod
    def _broken(reason: str) -> ApiError:
        return ApiError(400, f"body: not valid gzip: {reason}", code="invalid_gzip", headers={"Connection": "close"})
