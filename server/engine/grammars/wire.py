"""Messages between a server and its grammar workers. The standard library alone, because workers stay small."""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass

_HEADER = struct.Struct("<BIIII")  # kind, a, b, c, bytes of payload
_MOST = 1 << 28  # bytes of a message; more is no message

# From the server to a worker.
COMPILE, OPEN, STEP, CLOSE = 1, 2, 3, 4
# From a worker to the server.
COMPILED, STATE, MASK = 11, 12, 13
# Between the server and the process that forks workers.
INIT, READY, FORK, KILL, EXITED = 21, 22, 23, 24, 25

GOING, STOPPED, FAILED, REFUSED = 0, 1, 2, 3
"""What a STATE or MASK message says of a position: more tokens may follow, none may, its grammar is in error, or it was
given a token that it does not allow."""

PLACE = struct.Struct("<II")
"""The head of the shared memory: the kind of the message that a worker is at, and what it is about; 0 when it waits."""
HEAD = 64
"""Bytes before the first mask in the shared memory."""
MASKED = struct.Struct("<II")
"""One entry of a STEP message: position and token."""


@dataclass(frozen=True)
class GrammarMessage:
    """A message to a worker or from it.

    Attributes:
        kind: one of the constants above.
        a, b, c: ids and codes, whose meaning depends on ``kind``.
        payload: text or token ids, by ``kind``.
    """

    kind: int
    a: int = 0
    b: int = 0
    c: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        return _HEADER.pack(self.kind, self.a, self.b, self.c, len(self.payload)) + self.payload


class Channel:
    """Whole messages over a stream socket. One thread reads at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._held = bytearray()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, *messages: GrammarMessage) -> None:
        """Raises OSError where the other side is gone."""
        self.socket.sendall(b"".join(message.encode() for message in messages))

    def receive(self, seconds: float | None = None) -> GrammarMessage | None:
        """The next message; None when none came within ``seconds``. Raises EOFError where the other side is gone."""
        until = None if seconds is None else time.monotonic() + seconds
        while (message := self._next()) is None:
            # A message may come in pieces: what is there is kept, and the rest is waited for within the same time.
            left = None if until is None else 1e3 * max(0.0, until - time.monotonic())
            if not self._poll.poll(left):
                return None
            try:
                piece = self.socket.recv(1 << 16)
            except OSError:
                piece = b""
            if not piece:
                raise EOFError
            self._held += piece
        return message

    def close(self) -> None:
        self.socket.close()

    def _next(self) -> GrammarMessage | None:
        if len(self._held) < _HEADER.size:
            return None
        kind, a, b, c, length = _HEADER.unpack_from(self._held)
        # The length is what the other process says: beyond that of any message it is not believed, and the channel
        # counts as broken.
        if length > _MOST:
            raise EOFError("no message")
        end = _HEADER.size + length
        if len(self._held) < end:
            return None
        payload = bytes(self._held[_HEADER.size : end])
        del self._held[:end]
        return GrammarMessage(kind, a, b, c, payload)
