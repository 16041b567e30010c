"""Who may call, by which name, and how much they may send: API keys, trusted hosts, limits of bodies. Plain
ASGI middleware, so that disconnects still reach the handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ladle.server.access.api_keys import ApiKeys
from ladle.server.access.callers import ADMIN, ANYONE, GENERATE, Caller
from ladle.server.access.hosts import HostNames, without_port
from ladle.server.api_errors import ApiError

PROTECTED = ("/v1/", "/tokenize", "/detokenize")
ADMINISTRATION = "/v1/admin/"
KEY_HEADERS = ("x-api-key", "api-key")
"""Where clients of other APIs send their key, besides ``Authorization``."""
_CALLER = "ladle.caller"
_READ_OFF = 8  # times the largest body: what is read of one that is too large
_NEARER = "access-control-request-private-network"
_PROBES = ("/health", "/ready")


class Origins(CORSMiddleware):
    """Tells browsers which origins' pages may ask, and read the answers."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks before it sends; the access log names why it is a no. A page may be of the
        internet, and the server within a network or on the same machine."""
        others = {name: value for name, value in request_headers.items() if name != _NEARER}
        response = super().preflight_response(Headers(others))
        if _NEARER in request_headers and response.status_code < 400:
            response.headers["access-control-allow-private-network"] = "true"
        if response.status_code >= 400:
            ApiError(response.status_code, "", code="cors_refused").note()
        return response


def caller_of(scope: Scope) -> Caller:
    """Whose request it is."""
    caller: Caller = scope.get(_CALLER, ANYONE)
    return caller


def who_asks(request: Request) -> Hashable:
    """Who takes turns: a caller with a key, or an address where nobody has any."""
    caller = caller_of(request.scope)
    return request.client.host if caller is ANYONE and request.client is not None else caller


class KeyCheck:
    """401 for calls of what is ``PROTECTED`` without a known key, 403 for those that the key is not for. Health,
    readiness, metrics and docs stay open; administration is closed where no keys are asked for."""

    def __init__(self, app: ASGIApp, keys: ApiKeys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PROTECTED) and scope["method"] != "OPTIONS":
            try:
                scope[_CALLER] = self._let_in(scope)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _let_in(self, scope: Scope) -> Caller:
        caller = ANYONE if self._keys is None else self._known(self._keys, scope)
        needed = ADMIN if scope["path"].startswith(ADMINISTRATION) else GENERATE
        if needed not in caller.scopes:
            if self._keys is None:
                message = "administration needs an API key with the scope admin: start the server with --api-key-file"
            else:
                message = f"the key {caller.name!r} is not for this: it needs the scope {needed}"
            raise ApiError(403, message, code="missing_scope")
        return caller

    @staticmethod
    def _known(keys: ApiKeys, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip() if scheme.lower() == "bearer" else "", *(headers.get(name, "") for name in KEY_HEADERS)]
        # Some clients fill in one header with a word of no meaning and send the key in another.
        caller = next((match for key in given if key and (match := keys.find(key)) is not None), None)
        if caller is None:
            reason = "the API key is not known" if any(given) or scheme else "no API key was given"
            message = f"{reason}; send it as 'Authorization: Bearer KEY', or as 'x-api-key: KEY'"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return caller


class TrustedHosts:
    """400 for requests that ask for a host which is not among ``names``: a page that makes a browser believe its own
    name is this machine's (DNS rebinding) gets nothing. Probes are let through."""

    def __init__(self, app: ASGIApp, names: HostNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PROBES:
            given = Headers(scope=scope).getlist("host")
            host = without_port(given[0]) if len(given) == 1 else ""
            if host not in self._names:
                cure = "an operator lets names in with --trusted-host"
                error = ApiError(400, f"Host: {host[:200]!r} is not served here; {cure}", code="invalid_host")
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """413 for bodies above ``limit`` bytes, whether their length is announced or found out while they arrive; 408 for
    those that are not there after ``seconds``."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        until = asyncio.get_running_loop().time() + self._seconds
        if announced.isdecimal() and int(announced) > self._limit:
            # One who waits to be asked for the body, or whose body is far too large, is told at once.
            if "expect" not in Headers(scope=scope) and int(announced) <= _READ_OFF * self._limit:
                await self._read_off(receive, until)
            await self._too_large().response()(scope, receive, send)
            return
        received, complete = 0, False

        async def counted() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # waits for the client to leave
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                late = f"body: not complete after {self._seconds:g} s"
                raise ApiError(408, late, code="body_timeout", headers={"Connection": "close"}) from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > self._limit:
                    if not complete:
                        await self._read_off(receive, until)
                    raise self._too_large()
            return message

        await self._app(scope, counted, send)

    async def _read_off(self, receive: Receive, until: float) -> None:
        """Read and forget what a client still sends, within bounds: one that is cut off while it sends may never see
        why."""
        left, more = _READ_OFF * self._limit, True
        try:
            async with asyncio.timeout_at(until):
                while more and left > 0:
                    message = await receive()
                    more = message.get("more_body", False)  # gone clients have no more either
                    left -= len(message.get("body", b""))
        except TimeoutError:
            pass

    def _too_large(self) -> ApiError:
        message = f"body: larger than the {self._limit} bytes that are allowed"
        # The rest of the body may not be read, so the connection cannot carry another request.
        return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
