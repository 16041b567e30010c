"""What clients reach: it passes requests on to replicas, and asks another one when a replica dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, generate_latest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ladle.server.access.security import ADMINISTRATION
from ladle.server.api_errors import ApiError, unavailable
from ladle.server.http.disconnect import first_of, gone
from ladle.server.http.json_request import parse, require_few_values
from ladle.server.http.sse import event
from ladle.server.scale_out.affinity import affinity_keys
from ladle.server.scale_out.merged_metrics import merged
from ladle.server.watch import request_context

logger = logging.getLogger(__name__)

_TRIES = 5  # replicas that are asked for one answer
_ANSWER_S = 5.0  # how long replicas may take to say that they are well
_POSTED = "/v1/"
_GENERATE = "/v1/generate/"
_LONG = 1 << 18  # bytes from which reading a body leaves the event loop


class ReplicaLost(Exception):
    """The replica that was asked is gone, and the rest of its answer with it."""


class Replicas(Protocol):
    """What the front needs of a set of replicas; ``ray_replicas.RayReplicas`` is one."""

    def answer(self, scope: Mapping[str, Any], body: bytes, affinity: list[bytes]) -> AsyncGenerator[list[Message]]:
        """ASGI messages of one of them; closing it ends the request. Raises ReplicaLost."""

    async def about(self) -> dict[str, Any]:
        """What one of them says of itself. Raises ReplicaLost."""

    async def metrics(self) -> list[tuple[str, bytes]]:
        """Who they are, and the metrics of each of them."""


class Front:
    """An ASGI application.

    A request that has not begun to stream is asked of another replica when the one that works on it is lost. Answers
    that are not streams are held back until they are whole, so that this is always so for them; a stream that is cut
    ends with an error event of the code ``replica_lost``.
    """

    def __init__(self, unready: Callable[[], str | None]) -> None:
        """``unready``: why no work can be taken now; None once ``replicas`` is set and until the server drains."""
        self.replicas: Replicas | None = None
        self._unready = unready
        self._materialised: bool | None = None
        self.active = 0
        self._registry = registry = CollectorRegistry()
        self._retries = Counter("ladle_front_retries", "Requests asked of another replica", registry=registry)
        self._cut = Counter("ladle_front_streams_cut", "Streams that ended because a replica died", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no websockets
        path = scope["path"]
        local = {"/health": self._health, "/ready": self._ready, "/metrics": self._metrics}.get(path)
        reason = self._unready()
        try:
            if local is not None and scope["method"] in ("GET", "HEAD"):
                await (await local())(scope, receive, send)
            elif reason is not None:
                raise unavailable(f"the server cannot take work: {reason}", reason)
            elif path.startswith(ADMINISTRATION):
                message = f"{path} changes one server and there are several; SIGHUP replaces them all, one by one"
                raise ApiError(404, message, code="not_here")
            elif path.startswith(_GENERATE) and path.endswith("/steering"):
                message = (
                    f"{path}: which of several replicas writes an answer is not known here; steer it by a schedule"
                )
                raise ApiError(404, message, code="not_here")
            else:
                await self._pass_on(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)

    def _known(self) -> Replicas:
        reason = self._unready()
        if self.replicas is None or reason is not None:
            raise unavailable(f"not ready: {reason}", str(reason))
        return self.replicas

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        replicas = self._known()
        context = request_context.begin(Headers(scope=scope).get("x-request-id", ""))
        body = await _read(receive)
        if body is None:
            return  # the client left while it was sending
        keys = await self._keys(scope, body)
        asked = _portable(scope, context.id)
        answer = _Answer(send)

        async def work() -> bool:
            for attempt in range(_TRIES):
                try:
                    async with aclosing(replicas.answer(asked, body, keys)) as messages:
                        await answer.relay(messages)
                    return True
                except ReplicaLost as error:
                    if answer.begun:
                        self._cut.inc()
                        logger.warning("a replica was lost in the middle of a stream: %s", error)
                        await answer.cut()
                        return True
                    self._retries.inc()
                    logger.warning("a replica was lost, asking another one (%d): %s", attempt + 1, error)
            raise unavailable("replica after replica was lost while it worked on this request", "replica_lost")

        self.active += 1
        try:
            await first_of(asyncio.create_task(work()), asyncio.create_task(gone(receive)))
        finally:
            self.active -= 1

    async def _keys(self, scope: Scope, body: bytes) -> list[bytes]:
        if scope["method"] != "POST" or not scope["path"].startswith(_POSTED):
            return []
        if self._materialised is None:
            self._materialised = bool((await self._one()).get("materialised"))
        # Beside the event loop where it is long; whatever is wrong with it is for the replica to say.
        if len(body) < _LONG:
            return _names_of(body, self._materialised)
        return await asyncio.to_thread(_names_of, body, self._materialised)

    async def _one(self) -> dict[str, Any]:
        for _ in range(_TRIES):
            try:
                async with asyncio.timeout(_ANSWER_S):
                    return await self._known().about()
            except ReplicaLost:
                continue
            except TimeoutError:
                break
        raise unavailable("not ready: no replica answers", "no_replica")

    async def _health(self) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self) -> Response:
        about = await self._one()
        return JSONResponse({"status": "ready", "family": about["family"]})

    async def _metrics(self) -> Response:
        try:
            async with asyncio.timeout(_ANSWER_S):
                pages = [] if self.replicas is None else await self.replicas.metrics()
        except TimeoutError:
            pages = []
        text = merged(pages) + generate_latest(self._registry)
        return Response(text, media_type="text/plain; version=0.0.4")


def _names_of(body: bytes, materialised: bool) -> list[bytes]:
    """What tells which replica knows the beginning of a request; nothing for a body that no replica takes."""
    try:
        require_few_values(body, len(body))
        document = parse(body)
        return affinity_keys(document, materialised) if isinstance(document, dict) else []
    except (ApiError, ValueError, TypeError, RecursionError):
        return []


class _Answer:
    """What goes to the client. ``begun``: some of it has, so that it cannot be asked for again."""

    def __init__(self, send: Callable[[Message], Awaitable[None]]) -> None:
        self.begun = False
        self._send = send

    async def relay(self, batches: AsyncIterator[list[Message]]) -> None:
        """Pass on messages: those of a stream as they come, others once they are all there."""
        held: list[Message] = []
        async for batch in batches:
            held += batch
            if self.begun or (held and _is_stream(held[0])):
                self.begun = True
                await self._flush(held)
        if not held and not self.begun:
            raise ReplicaLost("it ended without an answer")
        self.begun = True
        await self._flush(held)

    async def _flush(self, held: list[Message]) -> None:
        for message in held:
            await self._send(message)
        held.clear()

    async def cut(self) -> None:
        """End a stream whose rest is lost."""
        error = unavailable("the replica that wrote this was lost; ask again", "replica_lost")
        await self._send({"type": "http.response.body", "body": event(error.envelope()), "more_body": False})


def _is_stream(start: Message) -> bool:
    headers = Headers(raw=start.get("headers", []))
    return headers.get("content-type", "").startswith("text/event-stream")


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None where its client left. Raises ApiError where its limit, which is outside of this, does."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _portable(scope: Scope, request_id: str) -> dict[str, Any]:
    """What of an ASGI scope means something in another process; the request keeps one id, whoever answers it."""
    names = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    return {
        **{name: scope[name] for name in names if name in scope},
        "root_path": "",
        "headers": [*headers, (b"x-request-id", request_id.encode())],
    }
