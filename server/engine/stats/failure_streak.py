"""Failures in a row, and whether they say that something is broken rather than that one thing went wrong."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

TWICE = 2
FORGOTTEN_S = 60.0
"""Traffic that is kept away cannot show that all is well again, so after this long it may try."""

_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s'\"/]+/)+")  # the reason is told to whoever asks; the log has them


class FailureStreak:
    """Failures of one kind of work since it last succeeded. From any thread."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``what``: the work, in words that come before "failed"."""
        self._what = what
        self._clock = clock
        self._state: tuple[int, str, float] | None = None

    def failed(self, error: BaseException) -> None:
        """Count one more failure."""
        count = 1 if self._state is None else self._state[0] + 1
        # What goes to clients names no folder of the server.
        said = str(error)
        if isinstance(error, OSError) and isinstance(error.filename, str):
            said = f"{error.strerror}: {os.path.basename(error.filename)}"
        text = _FOLDERS.sub(".../", (said.strip().splitlines() or [""])[0])
        name = type(error).__name__
        self._state = count, f"{name}: {text}" if text else name, self._clock()

    def succeeded(self) -> None:
        """End the streak."""
        self._state = None

    @property
    def reason(self) -> str | None:
        """Why nobody should rely on this work now, as a sentence; None after a single failure, or where the last one is
        a minute ago."""
        state = self._state
        if state is None or state[0] < TWICE or self._clock() - state[2] > FORGOTTEN_S:
            return None
        return f"{self._what} failed {state[0]} times in a row, the last time with {state[1]}"
