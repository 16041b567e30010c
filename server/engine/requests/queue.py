"""The bound of the queue: how many requests, with how many prompt tokens, may wait for their first step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NoReturn

from ladle.server.engine.requests.drain_rate import DrainRate


class QueueFull(Exception):
    """Too many requests, or too many tokens, wait; ``retry_after_s`` is when trying again makes sense, from the
    measured drain rate."""

    def __init__(self, waiting: int, retry_after_s: float, tokens: int | None = None) -> None:
        load = f"{waiting} requests" if tokens is None else f"{waiting} requests with {tokens} prompt tokens"
        super().__init__(f"{load} are waiting; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Ticket:
    """The place of one request in the queue."""

    def __init__(self, room: WaitingRoom, tokens: int) -> None:
        self.tokens = tokens
        self._room: WaitingRoom | None = room

    def leave(self) -> None:
        """Its turn has come, or it is given up; the second time it means nothing."""
        room, self._room = self._room, None
        if room is not None:
            room.left(self)


class WaitingRoom:
    """Counts what waits. Safe from any thread: whether there is room and taking it are one act, so that requests that
    come at once cannot all find the last place free."""

    def __init__(self, most: int, most_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``most_tokens`` bounds the prompt tokens, those of every source of a request counted; a request that finds
        nobody waiting is taken in whatever its length."""
        self.most = most
        self.most_tokens = most_tokens
        self.requests = 0
        self.tokens = 0
        self._clock = clock
        self._lock = threading.Lock()
        self.rate = DrainRate()

    def enter(self, tokens: int) -> Ticket:
        """A place for a request of ``tokens``. Raises QueueFull."""
        with self._lock:
            now = self._clock()
            over = self.tokens + tokens - self.most_tokens
            if self.requests >= self.most or (self.requests and over > 0):
                self._refuse(over)
            if not self.requests:
                self.rate.filled(now)
            self.requests += 1
            self.tokens += tokens
            return Ticket(self, tokens)

    def require(self) -> None:
        """Raise QueueFull while there is no place for any request, however short. Cheap: for asking before anything
        else is done for a request."""
        with self._lock:
            if self.requests >= self.most or (self.requests and self.tokens >= self.most_tokens):
                self._refuse(self.tokens + 1 - self.most_tokens)

    def _refuse(self, over: float) -> NoReturn:
        """``over``: tokens that are too many."""
        # Half of the queue: whoever is refused comes back to one that is neither full nor empty.
        wait = self.rate.seconds(self._clock(), self.requests / 2, max(over, self.tokens / 2))
        raise QueueFull(self.requests, wait, self.tokens)

    def left(self, ticket: Ticket) -> None:
        """A request left; for ``Ticket.leave``."""
        with self._lock:
            now = self._clock()
            self.requests -= 1
            self.tokens -= ticket.tokens
            self.rate.left(now, ticket.tokens)
            if not self.requests:
                self.rate.emptied(now)
