"""A server process: it listens first, loads behind that, and drains when told to stop."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from ladle.merging.exceptions import InputError
from ladle.server.admin.change_over import change_over
from ladle.server.admin.loading import FamilyFiles
from ladle.server.app import build_app
from ladle.server.http.late_heads import PromptHeads
from ladle.server.http.listener import BoundedListener
from ladle.server.http.slow_readers import bound_buffers
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import Phase, ServerState
from ladle.server.watch.loop_lag import watched
from ladle.server.watch.start_error import EngineStopped, StartError
from ladle.server.watch.tracing import configured

logger = logging.getLogger(__name__)

_FAREWELL_S = 2.0  # in which probes and clients can see that an engine has stopped
_LAST_WORDS_S = 5  # for answers that are still being sent once nothing runs any more


class Service:
    """One server process.

    Args:
        settings: what the operator wants.
        progress: called with one line before anything that takes long.
        on_ready: called once work can be taken, on the loading thread.
    """

    def __init__(
        self,
        settings: ServerSettings,
        progress: Callable[[str], None] | None = None,
        on_ready: Callable[[Serving], None] | None = None,
    ) -> None:
        self.settings = settings
        self.state = ServerState(settings, settings.read_keys(), tracing=configured(settings.otlp_traces_endpoint))
        self._say = progress
        self._on_ready = on_ready
        self._families = FamilyFiles(settings, self._progress)
        self.state.loader = self._families
        self._loader = threading.Thread(target=self._load, name="ladle-load", daemon=True)
        self._server: DrainingServer | None = None
        self._broken_since: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._change: Future[None] | None = None  # from a quick start to compiled loops; held, or nobody would

    def run(self, listener: socket.socket) -> None:
        """Serve on ``listener`` until SIGTERM or SIGINT.

        Raises:
            FamilyError, InputError, ...: why the family could not be loaded.
        """
        if not faulthandler.is_enabled() and sys.__stderr__ is not None:
            # A fault in native code says where it was before the process ends.
            faulthandler.enable(sys.__stderr__)
        bound_buffers(listener, self.settings.send_seconds)
        config = uvicorn.Config(
            build_app(self.state, self._lifespan, self.settings.host_names),
            log_config=None,
            access_log=False,  # ours says more, see observed.py
            server_header=False,
            lifespan="on",
            timeout_keep_alive=self.settings.idle_connection_seconds,
            http=PromptHeads,
            timeout_graceful_shutdown=_LAST_WORDS_S,
        )
        self._server = DrainingServer(config, self)
        self._server.run(sockets=[listener])
        self.state.tracing.close()
        if self.state.failure is not None:
            raise self.state.failure

    def stop(self) -> None:
        """What SIGTERM does, for a service that runs beside something else; from any thread."""
        if self._server is not None:
            self._server.handle_exit(signal.SIGTERM, None)

    def reload_keys(self) -> None:
        """What SIGHUP does; on the event loop. A key file that cannot be read changes nothing."""
        assert self.state.keys is not None
        try:
            self.state.keys.reload()
        except InputError as error:
            logger.error("the API keys stay as they are: %s", error)
        else:
            logger.info("%d API keys are known now", len(self.state.keys))

    @property
    def busy(self) -> bool:
        """Whether a thread of the service still computes after ``run``: a load that a signal overtook."""
        return self._loader.is_alive() or self.state.hosting.computing

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        # The first use of a worker thread imports what runs them, for up to 45 ms in which nobody else is served.
        await run_in_threadpool(lambda: None)
        self._loader.start()
        if self.state.keys is not None and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload_keys)
        try:
            async with watched(self.state.metrics.loop_lag.observe):
                yield
        finally:
            await asyncio.to_thread(self.state.hosting.close)

    def _progress(self, line: str) -> None:
        self.state.doing = line
        if self._say:
            self._say(line)

    def _load(self) -> None:
        """On the loading thread."""
        try:
            hosted = self._families.load(self.settings.family)
        except Exception as error:
            if self.state.phase is Phase.LOADING:  # a shutdown that came meanwhile is no failure
                self.state.failure = error
                self.state.phase = Phase.FAILED
            return
        self.state.metrics.watch(self.state.hosting.stats)
        self.state.publish(hosted)
        if self._on_ready:
            self._on_ready(hosted.live)
        if hosted.provisional and self._loop is not None:
            self._change = asyncio.run_coroutine_threadsafe(change_over(self.state), self._loop)

    async def drain(self, hurry: Callable[[], bool]) -> None:
        """Refuse new work, let running requests finish for ``drain_seconds`` unless in a ``hurry``, stop the engine."""
        self.state.phase = Phase.DRAINING
        self.state.drain_until = until = time.monotonic() + self.settings.drain_seconds
        while self.state.active and time.monotonic() < until and not hurry():
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self.state.hosting.close)

    def watch(self) -> None:
        """A server of which an engine has ended takes no work and cannot recover. It says so for a moment, lets what
        runs on other engines finish, and ends: whoever started it is to start another."""
        state = self.state
        if state.phase not in (Phase.READY, Phase.PAUSED) or not state.hosting.broken:
            return
        now = time.monotonic()
        if self._broken_since is None:
            self._broken_since = now
            logger.critical("an engine has stopped; the server takes no more work and ends")
        patience = self.settings.drain_seconds if state.active else 0.0
        if now - self._broken_since > max(_FAREWELL_S, patience):
            state.failure = EngineStopped("an engine has stopped; the log says why")


class Standing(Protocol):
    """``active``: requests that are not finished. ``failure``: why there is nothing to serve with."""

    @property
    def active(self) -> int: ...

    @property
    def failure(self) -> Exception | None: ...


class Drainable(Protocol):
    """What a DrainingServer needs of a service."""

    @property
    def state(self) -> Standing: ...

    async def drain(self, hurry: Callable[[], bool]) -> None:
        """Let running requests end, unless in a ``hurry``."""

    def watch(self) -> None:
        """Called several times a second, to notice what makes an end necessary."""


class DrainingServer(uvicorn.Server):
    """uvicorn that keeps listening, and answers 503, while running requests finish."""

    def __init__(self, config: uvicorn.Config, service: Drainable) -> None:
        super().__init__(config)
        self._service = service
        self._signals = 0
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second ends the wait; the third does not wait for anything."""
        self._signals += 1
        if self._signals > 2:
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._signals and self._drain is None:
            logger.info("draining: %d requests are running", self._service.state.active)
            self._drain = asyncio.create_task(self._service.drain(lambda: self._signals > 1))
        self._service.watch()
        if self._service.state.failure is not None or (self._drain is not None and self._drain.done()):
            self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        StartError: the port is taken or not allowed, or the address is not one of this machine's.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = addresses[0]
        return BoundedListener(socket.create_server(address[:2], family=family, backlog=2048))
    except socket.gaierror as error:
        reason = f"{error.strerror}; give a name or address of this machine"
        raise StartError(f"cannot listen on {host!r}: {reason}") from None
    except OSError as error:
        reason = f"{os.strerror(error.errno) if error.errno else error}; choose another port (0 picks a free one)"
        raise StartError(f"cannot listen on {host}:{port}: {reason}") from None


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches ``listener``."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
