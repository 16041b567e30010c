"""Who may call and how much they may send: API keys, the body limit. Plain ASGI middleware, so that
disconnects still reach the handlers."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ladle.merging.errors import InputError
from ladle.server.errors import ApiError

PROTECTED = "/v1/"


class ApiKeys:
    """The keys that are let in, kept as digests."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """One key a line; blank lines and lines that begin with ``#`` are skipped.

        Raises:
            InputError: an unreadable file, or one without keys: that would be a server nobody, or everybody, can use.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("api_key_file", str(path), f"a readable text file ({error})") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise InputError("api_key_file", str(path), "a file with at least one key")
        return cls(keys)

    def accepts(self, key: str) -> bool:
        """Whether ``key``, as it stands in a header, is one of the keys; takes the same time whichever it is."""
        # Headers are bytes that the web layer shows as Latin-1; keys are UTF-8.
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


class KeyCheck:
    """401 for calls under /v1/ without a known key. Health, readiness, metrics and docs stay open."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PROTECTED) and scope["method"] != "OPTIONS":
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._keys.accepts(key.strip()):
                given = "no API key was given" if not key else "the API key is not known"
                message = f"{given}; send it as 'Authorization: Bearer KEY'"
                error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """413 for bodies above ``limit`` bytes, whether their length is announced or found out while they arrive."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limit:
            await self._too_large().response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._limit:
                    raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> ApiError:
        message = f"body: larger than the {self._limit} bytes that are allowed"
        # The rest of the body is not read, so the connection cannot carry another request.
        return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
