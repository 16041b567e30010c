"""Clients that do not read what they are sent: they lose their answer, and whatever it holds is free again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_KERNEL_BYTES = 128 << 10  # of an answer that the system keeps for a client, so that one who stalls is noticed


class ClientStalled(OSError):
    """A client did not take a piece of its answer in time. To whoever makes the answer it is gone."""


class SendTimeout:
    """Gives up an answer of which no piece could be sent for ``seconds``."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def timed(message: Message) -> None:
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:
                client = ":".join(map(str, scope.get("client") or ("somebody",)))
                logger.warning("%s has read nothing of its answer for %g s and is given up", client, self._seconds)
                raise ClientStalled from None

        with contextlib.suppress(ClientStalled):
            await self._app(scope, receive, timed)
        # The web server closes the connection of an answer that is not complete.


def bound_buffers(listener: socket.socket, seconds: float) -> None:
    """Let the system keep little for clients that do not read, and drop their connections after ``seconds``: closing
    one waits for what was sent to be read. Connections inherit both; where the system cannot do it, it does not."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
        option = getattr(socket, "TCP_USER_TIMEOUT", None)
        if option is not None and listener.family in (socket.AF_INET, socket.AF_INET6):
            listener.setsockopt(socket.IPPROTO_TCP, option, max(1, int(seconds * 1000)))
    except OSError as error:
        logger.info("the limits of slow readers are left to the system: %s", error)
