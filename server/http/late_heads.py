"""Connections on which no request comes, or only the beginning of one: they end, so that others find room."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class PromptHeads(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # which one it is depends on what is installed
    """uvicorn's protocol, whose keep-alive time ends a connection after an answer, and not one that never had any.

    A connection is closed when the head of a request is not complete within the keep-alive time: from the connection's
    first moment on, or from the first byte behind the answer before.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        """Whether there is no request that is read or answered."""
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> None:
        if not self._waits:
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(self.timeout_keep_alive, self._end)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        if self._waits:
            self.transport.close()
