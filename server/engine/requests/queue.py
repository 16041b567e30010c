"""The bound of the queue: how many requests, with how many prompt tokens, may wait for their first step; and how fast
it empties, and so when a request that finds it full should come back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn

_REMEMBERED = 64
_LEAST_S, _MOST_S = 1.0, 600.0


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


class DrainRate:
    """Measured over the last requests that left the queue, on a clock that runs only while something waits: an hour
    without requests says nothing of how fast they are taken up. Not safe from several threads; the queue's lock is."""

    def __init__(self) -> None:
        self._left: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)
        self._busy = 0.0
        self._since: float | None = None

    def __len__(self) -> int:
        return len(self._left)

    def filled(self, now: float) -> None:
        """The queue is no longer empty; ``now`` in seconds of a clock that never goes back."""
        self._since = now

    def left(self, now: float, tokens: int) -> None:
        """A request with ``tokens`` left the queue."""
        self._left.append((self._clock(now), tokens))

    def emptied(self, now: float) -> None:
        """Nothing waits any more."""
        self._busy, self._since = self._clock(now), None

    def seconds(self, now: float, requests: float, tokens: float) -> float:
        """Until so many requests with so many tokens have left the queue, from 1 to 600; 1 while nothing is known."""
        if len(self._left) < 2:
            return _LEAST_S
        # Up to now, not to the last departure: a queue that has come to a halt looks slower by the second.
        elapsed = self._clock(now) - self._left[0][0]
        gone = len(self._left) - 1
        # The first departure only starts the clock; the wait is by requests or by tokens, whichever takes longer.
        gone_tokens = sum(count for _, count in list(self._left)[1:])
        wait = elapsed * max(requests / gone, tokens / max(1, gone_tokens))
        return min(_MOST_S, max(_LEAST_S, wait))

    def _clock(self, now: float) -> float:
        return self._busy + (0.0 if self._since is None else now - self._since)


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
            # A request larger than the whole bound still gets in when nobody waits, or it never would.
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
