"""Who may call, by which name, and how much they may send: API keys, trusted hosts, limits of bodies. Plain
ASGI middleware, so that disconnects still reach the handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ladle.server.access.api_keys import ApiKeys
from ladle.server.access.callers import ADMIN, ANYONE, GENERATE, Caller
from ladle.server.errors import ApiError

PROTECTED = "/v1/"
ADMINISTRATION = "/v1/admin/"
_CALLER = "ladle.caller"
_PROBES = ("/health", "/ready")


def caller_of(scope: Scope) -> Caller:
    """Whose request it is."""
    caller: Caller = scope.get(_CALLER, ANYONE)
    return caller


class KeyCheck:
    """401 for calls under /v1/ without a known key, 403 for those that the key is not for. Health, readiness, metrics
    and docs stay open; administration is closed where no keys are asked for."""

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
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        caller = keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            given = "no API key was given" if not key else "the API key is not known"
            message = f"{given}; send it as 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return caller


class TrustedHosts:
    """400 for requests that ask for another host than ``hosts``, names or ``*.NAME``: a page that makes a browser
    believe its own name is this machine's (DNS rebinding) gets nothing. Probes ask by address, and are let through."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(host.lower() for host in hosts)
        self._endings = tuple(host[1:].lower() for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PROBES:
            given = Headers(scope=scope).getlist("host")
            host = _without_port(given[0]) if len(given) == 1 else ""
            if host not in self._names and not (host and host.endswith(self._endings)):
                error = ApiError(400, f"Host: {host[:200]!r} is not served here", code="invalid_host")
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _without_port(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


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
        if announced.isdecimal() and int(announced) > self._limit:
            await self._too_large().response()(scope, receive, send)
            return
        received, complete = 0, False
        until = asyncio.get_running_loop().time() + self._seconds

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
                    raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> ApiError:
        message = f"body: larger than the {self._limit} bytes that are allowed"
        # The rest of the body is not read, so the connection cannot carry another request.
        return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
