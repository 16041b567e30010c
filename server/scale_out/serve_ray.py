"""``ladle serve --ray``: a front in this process, replicas wherever Ray puts them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import ray
import uvicorn
from ray import serve
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from ladle.guidance.registry import check_methods
from ladle.merging.family.family import load_family
from ladle.server.access.security import BodyLimit, TrustedHosts
from ladle.server.http.late_heads import PromptHeads
from ladle.server.http.request_shape import Failures, WithoutPrefix
from ladle.server.http.slow_readers import SendTimeout, bound_buffers
from ladle.server.run import DrainingServer
from ladle.server.scale_out.front import Front
from ladle.server.scale_out.ray_replicas import NAME, RayReplicas, application
from ladle.server.settings import ServerSettings
from ladle.server.state import Phase
from ladle.server.watch.start_error import StartError

logger = logging.getLogger(__name__)

_LAST_WORDS_S = 5


class RayService:
    """Like ``run.Service``, with the engines elsewhere.

    SIGTERM drains; SIGHUP replaces the replicas one by one, by such as have read the family and the keys anew.

    Args:
        on_ready: called with what a replica says of itself, once there is one.
    """

    def __init__(self, settings: ServerSettings, on_ready: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.settings = settings
        self.phase = Phase.LOADING
        self.failure: Exception | None = None
        self.front = Front(self._unready)
        self._on_ready = on_ready
        self._deploying = threading.Lock()

    # -- what DrainingServer asks for

    @property
    def state(self) -> RayService:
        return self

    @property
    def active(self) -> int:
        """Requests that are passed on and not answered yet."""
        return self.front.active

    def _unready(self) -> str | None:
        return None if self.phase is Phase.READY else str(self.phase)

    async def drain(self, hurry: Callable[[], bool]) -> None:
        """Let running requests end, for ``drain_seconds`` unless in a ``hurry``; new ones are refused meanwhile."""
        self.phase = Phase.DRAINING
        until = time.monotonic() + self.settings.drain_seconds
        while self.active and time.monotonic() < until and not hurry():
            await asyncio.sleep(0.05)

    def watch(self) -> None:
        """Nothing that happens to replicas ends the front: Ray replaces them."""

    def run(self, listener: socket.socket) -> None:
        """Serve on ``listener`` until SIGTERM or SIGINT; raises why no replica could be started."""
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS") or "local"
            ray.init(address=address, include_dashboard=False, log_to_driver=True, logging_level=logging.WARNING)
        try:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
            bound_buffers(listener, self.settings.send_seconds)
            config = uvicorn.Config(
                self._app(),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_keep_alive=self.settings.idle_connection_seconds,
                http=PromptHeads,
                timeout_graceful_shutdown=_LAST_WORDS_S,
            )
            DrainingServer(config, self).run(sockets=[listener])
        finally:
            serve.shutdown()
            ray.shutdown()
        if self.failure is not None:
            raise self.failure

    def _app(self) -> ASGIApp:
        settings = self.settings
        limited = BodyLimit(Failures(self.front), limit=settings.max_body_bytes, seconds=settings.body_seconds)
        known = TrustedHosts(limited, settings.host_names)
        requests = WithoutPrefix(SendTimeout(known, seconds=settings.send_seconds), settings.root_path)
        life = Starlette(lifespan=self._lifespan)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await (life if scope["type"] == "lifespan" else requests)(scope, receive, send)

        return app

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(self._load())
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.roll)
        yield
        loading.cancel()

    async def _load(self) -> None:
        try:
            handle = await asyncio.to_thread(self._deploy)
            replicas = RayReplicas(handle)
            about = await replicas.about()
        except Exception as error:
            if self.phase is Phase.LOADING:
                self.failure, self.phase = error, Phase.FAILED
            return
        self.front.replicas = replicas
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY
        if self._on_ready:
            self._on_ready(about)

    def _deploy(self) -> Any:
        """Raises what loading the family would: here, where somebody reads it, and before replicas try in vain."""
        check_methods(load_family(self.settings.family, self.settings.cache_dir))
        self.settings.read_keys()
        with self._deploying:
            try:
                return serve.run(application(self.settings), name=NAME, route_prefix=None)
            except RuntimeError as error:
                raise StartError(f"no replica could be started: {error}") from None

    def roll(self) -> None:
        """Replace the replicas one by one; requests go on."""

        def deploy() -> None:
            try:
                self._deploy()
            except Exception:
                logger.exception("the replicas could not be replaced")
            else:
                logger.info("the replicas were replaced")

        logger.info("replacing the replicas")
        threading.Thread(target=deploy, name="ladle-roll", daemon=True).start()
