"""The socket that a server listens on: it refuses connections before they use the process's last file descriptors."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import socket
import time
from typing import Any

from ladle.server.api_errors import unavailable

logger = logging.getLogger(__name__)

_RESERVE = 64  # descriptors that are left for files, processes of grammars and their like
_QUIET_S = 60.0  # after so many seconds without a refusal the next one is worth a line in the log
_AT_ONCE = 100  # refusals, after which the event loop does something else
_FULL = (errno.EMFILE, errno.ENFILE)


class BoundedListener(socket.socket):
    """A listening socket whose ``accept`` refuses what would not leave room.

    Numbers of descriptors are given out from the lowest: a connection with a high one is one of many. It gets 503 and
    is closed. Where no descriptor is left at all (others than connections use them too), one that was kept for this is
    given up for a moment, so that waiting connections are closed instead of being offered again and again.
    """

    def __init__(self, listener: socket.socket) -> None:
        """Take ``listener`` over, which is of no use afterwards."""
        super().__init__(listener.family, listener.type, listener.proto, fileno=listener.detach())
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        self._refused_at = -_QUIET_S

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that there is room for.

        Raises:
            BlockingIOError: none waits, or enough were refused for now.
        """
        for _ in range(_AT_ONCE):
            try:
                connection, address = super().accept()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._drop_one()
                continue
            if connection.fileno() < _most():
                _send_at_once(connection)
                return connection, address
            self._note()
            _refuse(connection)
        raise BlockingIOError(errno.EAGAIN, "connections were refused")

    def close(self) -> None:
        super().close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _drop_one(self) -> None:
        self._note()
        if self._spare is None:
            raise BlockingIOError(errno.EAGAIN, "no file descriptor is left")
        os.close(self._spare)
        self._spare = None
        try:
            connection, _ = super().accept()
            connection.close()
        finally:
            # Another thread may have been faster; it is tried again at the next connection.
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)

    def _note(self) -> None:
        now = time.monotonic()
        if now - self._refused_at >= _QUIET_S:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            logger.error(
                "connections are refused: nearly all of the %d file descriptors of this process are in use (ulimit -n)",
                limit,
            )
        self._refused_at = now


def _most() -> float:
    """Numbers below this one leave enough descriptors free."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit - min(_RESERVE, limit // 4)


def _send_at_once(connection: socket.socket) -> None:
    """Let no part of an answer wait until the client has acknowledged the part before, which it may put off for 40 ms:
    an answer's head and body are two parts, and so is every token of a stream. asyncio asks for this only where a
    socket names its protocol, which one that listens does not."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # it may be closed by now
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _refuse(connection: socket.socket) -> None:
    error = unavailable("the server has as many connections as it can have", "too_many_connections", 1)
    body = json.dumps(error.envelope()).encode()
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Retry-After: 1\r\nConnection: close\r\n\r\n"
    )
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(head.encode() + body)
        # What has come unread would make the system reset the connection, and the answer with it.
        connection.recv(1 << 16)
