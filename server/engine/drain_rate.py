"""How fast requests come to their ends, and so when one that finds the queue full should come back."""

from __future__ import annotations

from collections import deque

_REMEMBERED = 64
_LEAST_S, _MOST_S = 1.0, 60.0


class QueueFull(Exception):
    """Too many requests wait; ``retry_after_s`` is when trying again makes sense, from the measured drain rate."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} requests are waiting; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class DrainRate:
    """Measured over the last requests that ended. Written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._times)

    def finished(self, now: float) -> None:
        """One more request ended; ``now`` in seconds of a clock that never goes back."""
        self._times.append(now)

    def retry_after(self, waiting: int) -> float:
        """Seconds until half of the ``waiting`` requests have had their turn, from 1 to 60."""
        times = list(self._times)
        if len(times) < 2 or times[-1] <= times[0]:
            return _LEAST_S
        rate = (len(times) - 1) / (times[-1] - times[0])
        return min(_MOST_S, max(_LEAST_S, waiting / rate / 2))
