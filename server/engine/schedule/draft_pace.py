"""Whether it pays to have drafted tokens checked: what a step costs with them and without, as far as it was seen."""

from __future__ import annotations

_RECENT = 0.2
"""Weight of the newest step in what is held to be usual."""
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

    def note(self, step_rows: int, drafted: int, seconds: float) -> None:
        """A step of ``step_rows`` rows, and ``drafted`` ones besides, took so long."""
        if not drafted:
            self._since = 0
            self._plain[step_rows] = _moved(self._plain.get(step_rows), seconds)
        # The surcharge of drafted rows: the time beyond a plain step of the same batch, spread over them.
        elif step_rows in self._plain:
            self._since += 1
            self._row = _moved(self._row, max(0.0, seconds - self._plain[step_rows]) / drafted)


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


def _moved(usual: float | None, now: float) -> float:
    return now if usual is None else usual + _RECENT * (now - usual)
