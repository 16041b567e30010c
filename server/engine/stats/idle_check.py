"""Looks over the engine's bookkeeping while nothing runs: what leaked is found before it is missed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

EVERY_S = 10.0


@dataclass(frozen=True)
class IdleChecks:
    """Checks of the bookkeeping while nothing runs.

    Attributes:
        passed: how often it was found in order.
        seconds_ago: since the last such check; None before the first one.
    """

    passed: int
    seconds_ago: float | None


class IdleCheck:
    """Calls ``check``, which raises where something is wrong, once after the engine has worked and at most every
    ``every_s`` seconds. For the engine's thread; ``seen`` for any."""

    def __init__(
        self, check: Callable[[], None], every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._check = check
        self._every_s = every_s
        self._clock = clock
        self._worked = False
        self._passed = 0
        self._last: float | None = None

    def worked(self) -> None:
        """The bookkeeping has changed since the last check."""
        self._worked = True

    def due_in(self) -> float | None:
        """Seconds until the next check; None while there is nothing new to look at."""
        if not self._worked:
            return None
        return 0.0 if self._last is None else max(0.0, self._last + self._every_s - self._clock())

    def run(self) -> None:
        """Check now. Raises what the check raises."""
        self._check()
        self._worked = False
        self._passed += 1
        self._last = self._clock()

    def seen(self) -> IdleChecks:
        """The checks so far."""
        last = self._last
        return IdleChecks(self._passed, None if last is None else self._clock() - last)
