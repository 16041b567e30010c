"""How fast the queue empties, and so when a request that finds it full should come back."""

from __future__ import annotations

from collections import deque

_REMEMBERED = 64
_LEAST_S, _MOST_S = 1.0, 600.0


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
        gone_tokens = sum(count for _, count in list(self._left)[1:])
        wait = elapsed * max(requests / gone, tokens / max(1, gone_tokens))
        return min(_MOST_S, max(_LEAST_S, wait))

    def _clock(self, now: float) -> float:
        return self._busy + (0.0 if self._since is None else now - self._since)
