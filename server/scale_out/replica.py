"""One replica: a whole server with the whole bank, which is asked through Ray instead of a socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import Message

from ladle.server.admin.loading import FamilyFiles
from ladle.server.app import build_app
from ladle.server.engine.device.allocator import settle
from ladle.server.settings import ServerSettings
from ladle.server.state import Phase, ServerState
from ladle.server.watch.logs import configure_logging
from ladle.server.watch.tracing import configured

logger = logging.getLogger(__name__)

_QUEUED = 64  # messages of one answer that wait to be taken
_LEAVE_S = 10.0  # how long an answer that nobody wants may take to give back what it holds


class Replica:
    """Any replica serves any preference, so requests go wherever there is room."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Load the family of ``options`` (of ServerSettings). Raises what loading raises; Ray then tries again."""
        settings = ServerSettings(**options)
        configure_logging(settings.log_level, settings.log_format, settings.log_prompts)
        self._state = ServerState(settings, settings.read_keys(), tracing=configured(settings.otlp_traces_endpoint))
        hosted = FamilyFiles(settings).load(settings.family)
        self._state.metrics.watch(self._state.hosting.stats)
        self._state.publish(hosted)
        self._app = build_app(self._state)
        settle()

    async def answer(
        self, scope: Message, body: bytes, affinity: list[bytes] | None = None
    ) -> AsyncGenerator[Any, None]:
        """The ASGI messages that answer a request, lists of those that are there; ``affinity`` is for the router.

        Closing it is what a client does that goes away.
        """
        queue: asyncio.Queue[Message | None] = asyncio.Queue(_QUEUED)
        left = asyncio.Event()
        parts = [body]

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def work() -> None:
            try:
                await self._app(scope, receive, queue.put)
            except Exception:
                # Starlette has answered 500 and raises for the web server's log, which is ours here.
                logger.exception("a request failed")
            await queue.put(None)

        task = asyncio.create_task(work())
        try:
            ended = False
            while not ended:
                batch = [await queue.get()]
                while not queue.empty():
                    batch.append(queue.get_nowait())
                ended = batch[-1] is None
                yield [message for message in batch if message is not None]
        finally:
            left.set()
            while not queue.empty():
                queue.get_nowait()
            done, _ = await asyncio.wait((task,), timeout=_LEAVE_S)
            if not done:
                task.cancel()

    async def about(self) -> dict[str, Any]:
        """What the front needs to know of the family, and who this is."""
        assert self._state.serving is not None
        family, longest = self._state.serving.family, self._state.serving.engine.max_context
        full = any(member.storage == "full" for member in family.members())
        return {"family": family.name, "max_context": longest, "materialised": full, "pid": os.getpid()}

    async def metrics(self) -> tuple[str, bytes]:
        """Who this is (machine and process) and its metrics in Prometheus' text format."""
        return f"{socket.gethostname()}-{os.getpid()}", self._state.metrics.render()

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica whose engine has stopped."""
        reason = self._state.unready()
        if reason is not None and self._state.phase is not Phase.DRAINING:
            raise RuntimeError(f"not ready: {reason}")

    def __del__(self) -> None:
        """Called by Ray once running requests have ended, or their time is up."""
        if hasattr(self, "_app"):
            self._state.phase = Phase.DRAINING
            self._state.hosting.close()
            self._state.tracing.close()
