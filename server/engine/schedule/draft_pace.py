"""Whether it pays to draft tokens and to have them checked: what steps and guesses cost, as far as it was seen."""

from __future__ import annotations

_RECENT = 0.2
"""Weight of the newest step in what is held to be usual."""
_QUICKER = 0.5
"""The same for a forward of the draft model that took less than usual."""
_STALL = 2.0
"""A step counts as so many usual ones at most."""
_FIRST_GUESS = 0.1
"""What a row adds to a step, as a share of it, before any was measured."""
_PLAIN_AGAIN = 64
"""After so many steps with drafts one goes without, because contexts grow and processors slow down."""


class DraftPace:
    """Learns the time of a step by its rows, and what a drafted row adds. For the engine's thread."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}
        self._row: float | None = None
        self._since = 0

    def row_cost(self, step_rows: int) -> float | None:
        """What one more row adds to a step of ``step_rows``, as a share of that step; None where such a step has to be
        seen without drafts first."""
        plain = self._plain.get(step_rows)
        if plain is None or self._since >= _PLAIN_AGAIN:
            return None
        # The measured time of a row over the usual time of a step of this size.
        return _FIRST_GUESS if self._row is None else self._row / plain

    def step(self, step_rows: int) -> float | None:
        """Seconds of a step of ``step_rows`` without drafts; None where none was seen."""
        return self._plain.get(step_rows)

    def note(self, step_rows: int, drafted: int, seconds: float) -> None:
        """A step of ``step_rows`` rows, and ``drafted`` ones besides, took so long."""
        if not drafted:
            self._since = 0
            usual = self._plain.get(step_rows)
            # A processor that was away for a moment says nothing of steps; one that has become slower says it again.
            self._plain[step_rows] = _moved(usual, seconds if usual is None else min(seconds, _STALL * usual))
        # The surcharge of drafted rows: the time beyond a plain step of the same batch, spread over them.
        elif step_rows in self._plain:
            self._since += 1
            self._row = _moved(self._row, max(0.0, seconds - self._plain[step_rows]) / drafted)


class GuessPace:
    """Learns the time of a draft model: of a forward by its sequences, and of a token that it reads. For the engine's
    thread."""

    def __init__(self) -> None:
        self._forward: dict[int, float] = {}
        self._token = 0.0
        self.seconds = 0.0
        """All of it so far."""

    def forward(self, sequences: int) -> float:
        """Seconds of a forward that gives each of ``sequences`` a token: of the nearest number that was seen, and 0
        before any was, which is soon found out."""
        if not self._forward:
            return 0.0
        return self._forward[min(self._forward, key=lambda seen: abs(seen - sequences))]

    def reading(self, tokens: int) -> float:
        """Seconds to read ``tokens``."""
        return self._token * tokens

    def note_forward(self, sequences: int, seconds: float) -> None:
        """A forward over ``sequences`` took so long."""
        self.seconds += seconds
        usual = self._forward.get(sequences)
        # The first one of its kind may have taken more than any later one will.
        slow = usual is None or usual < seconds
        self._forward[sequences] = _moved(usual, seconds) if slow else _moved(usual, seconds, _QUICKER)

    def note_reading(self, tokens: int, seconds: float) -> None:
        """To read ``tokens`` took so long."""
        self.seconds += seconds
        self._token = _moved(self._token or None, seconds / tokens)


def worthwhile(likely: float, cost: float, most: int) -> int:
    """How many tokens to draft, ``most`` at most: as long as the next one saves more than it costs.

    Args:
        likely: the chance that a drafted token is the one that will be drawn.
        cost: of one drafted token's rows, where the step that it may save counts 1.
    """
    # The n-th token is of use only if all before it are right, so its chance is likely^n.
    count, chance = 0, likely
    while count < most and chance > cost:
        count, chance = count + 1, chance * likely
    return count


def _moved(usual: float | None, now: float, newest: float = _RECENT) -> float:
    return now if usual is None else usual + newest * (now - usual)
