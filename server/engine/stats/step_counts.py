"""What an engine's steps were like: counted on its thread, read from any."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from ladle.server.engine.requests.sequence import Sequence

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
_MIXED = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Distribution:
    """How often a quantity was at most each of some bounds, and beyond the last.

    Attributes:
        bounds: increasing, in the unit of the quantity.
        counts: one more than bounds, and not cumulative.
        total: the sum of all that was seen.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Tally:
    """A distribution that grows. One thread adds, any may read: what is read may lack the last addition, no more."""

    def __init__(self, bounds: Seq[float]) -> None:
        """``bounds``: increasing."""
        self._bounds = tuple(map(float, bounds))
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count ``value``."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def seen(self) -> Distribution:
        """All so far."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


class StepCounts:
    """What the steps of one engine were like.

    Attributes:
        steps: how many were computed so far.
        weights, preferences: different sets of weights, and different wishes, in the last step.
        step_rows: of every step, its rows: the tokens of all lanes, and candidates.
        seconds: of every step, how long it took.
        mixed: of every step, its different wishes.
        late: by expert, tokens that it computed later than they came.
    """

    def __init__(self, experts: Iterable[str]) -> None:
        self.steps = 0
        self.weights = 0
        self.preferences = 0
        self.step_rows = Tally(_ROWS)
        self.seconds = Tally(_SECONDS)
        self.mixed = Tally(_MIXED)
        self.late = dict.fromkeys(experts, 0)

    def step(self, sequences: Seq[Sequence], step_rows: int, seconds: float) -> None:
        """Count a step over ``sequences``."""
        self.steps += 1
        # Keys with coefficients: two preferences count as two even where one forward computes both.
        self.weights = len({lane.weights for sequence in sequences for lane in sequence.lanes})
        self.preferences = len({_wish(sequence) for sequence in sequences})
        self.step_rows.add(step_rows)
        self.seconds.add(seconds)
        self.mixed.add(self.preferences)

    def made_up(self, late: Mapping[str, int]) -> None:
        """Count what experts made up for."""
        for name, count in late.items():
            self.late[name] += count


def _wish(sequence: Sequence) -> object:
    """What a request wants more of: its preference; where it gave none, the weights that it runs on."""
    plan = sequence.request.plan
    return plan.sources if plan.preference is None else plan.preference.weights
