"""What one monitor knows of an answer that is being written: where the parts that it judges end, what it said of them,
and how much may be shown."""

from __future__ import annotations

import re
from bisect import bisect_right

from ladle.guidance.plan import Monitor
from ladle.server.engine.requests.request import Trip

LONGEST = 64
"""Tokens of a sentence that are asked about before it has ended."""
_CLOSING = r"['\")\]\u00bb\u201d\u2019]*\s*|\n\s*)$"
_ENDS = re.compile(r"(?:[.!?\u2026\u3002\uff01\uff1f]" + _CLOSING)
_PARTS = re.compile(r"(?:[.,:;!?)\]}\u2026\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]" + _CLOSING)
_TAIL = 16


class Watch:
    """A fold over what is judged, in order: single tokens, or sentences."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.ends: list[int] = []
        """How many tokens of the answer there are where each part ends."""
        self.trip: Trip | None = None
        self._values: list[float] = []
        self._early: dict[int, float] = {}
        self._above = 0

    def ended(self, tokens: int) -> int:
        """A part ends with so many tokens; its index."""
        self.ends.append(tokens)
        return len(self.ends) - 1

    def extend(self, tokens: int) -> None:
        """The last part goes on to so many tokens, without anything to judge in what is new."""
        self.ends[-1] = tokens

    def judged(self, index: int, value: float) -> None:
        """What is said of a part. Parts may be judged in any order; they count in theirs."""
        # Reorder: verdicts come out of order, since questions take longer than values. Only the next one in turn
        # counts, and every one after it that is there already.
        self._early[index] = value
        while (value_of := self._early.pop(len(self._values), None)) is not None:
            self._values.append(value_of)
            self._above = self._above + 1 if value_of > self.monitor.above else 0
            if self.trip is None and self._above >= self.monitor.run:
                self.trip = Trip(self.monitor.name, self.ends[len(self._values) - 1], value_of)

    def settled(self, tokens: int) -> int:
        """Up to how many of the ``tokens`` nothing is left to judge."""
        known = len(self._values)
        return self.ends[known] - 1 if known < len(self.ends) else tokens

    def free(self, settled: int) -> int:
        """How many tokens may be shown when everything up to ``settled`` tokens is judged: all but the last ``hold``
        parts that a trip at the next one would take back."""
        # Parts up to ``settled``, less the last ``hold`` of them: a trip at the next part would take those back.
        index = bisect_right(self.ends, settled) - self.monitor.hold
        return self.ends[index] if index >= 0 else 0

    def said(self, token: int) -> float | None:
        """What it said of the part that ends with the ``token``-th token; None where none does."""
        # The last part that ends no later than this token; it counts only if it ends exactly there.
        index = bisect_right(self.ends, token) - 1
        ends = 0 <= index < len(self._values) and self.ends[index] == token
        return self._values[index] if ends else None


class Sentences:
    """Where sentences end in a text that comes in pieces, a token each: after a mark that ends one, at the end of a
    line, and after ``LONGEST`` tokens. What has neither a letter nor a digit is no sentence."""

    def __init__(self, parts: bool = False) -> None:
        """``parts``: marks that end a part of a sentence count too, such as commas."""
        self._ends = _PARTS if parts else _ENDS
        self._tail = ""
        self._tokens = 0
        self.says = False
        """Whether there is anything to judge since the last end."""

    def push(self, piece: str) -> bool:
        """Whether a sentence ends with ``piece``."""
        # A mark may be split over tokens, so the pattern looks at the last characters, not at the piece alone.
        self._tail = (self._tail + piece)[-_TAIL:]
        self._tokens += 1
        self.says = self.says or any(character.isalnum() for character in piece)
        if not self.says or not (self._ends.search(self._tail) or self._tokens >= LONGEST):
            return False
        self._tokens, self.says = 0, False
        return True
