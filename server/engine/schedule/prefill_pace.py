"""How many tokens of prompts a step computes beside answers that are being written: as many as these can wait for."""

from __future__ import annotations

import statistics
from collections import deque

from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.schedule.step_plan import StepPlan

_REMEMBERED = 15
"""Steps of either kind whose medians count: what takes an odd step longer is none of the prompts' business."""
_FEWEST = 2 * BLOCK_SIZE


class PrefillPace:
    """Learns from the steps so far what a step without prompts takes, and what a token of a prompt adds to it.

    Args:
        slowdown: how many times longer a step may take for the sake of prompts; 0: as long as the token budget lets it.
    """

    def __init__(self, slowdown: float = 0.0) -> None:
        self._slowdown = slowdown
        self._decode: deque[float] = deque(maxlen=_REMEMBERED)
        self._token: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, plan: StepPlan, seconds: float) -> None:
        """A step took so long."""
        tokens = sum(chunk.count for chunk in plan.chunks)
        if not tokens:
            self._decode.append(seconds)
        elif tokens >= _FEWEST // 2:
            # What prompts have added: the step's time beyond that of an ordinary step without any. Chunks of a few
            # tokens tell nothing, since a step costs something by itself.
            rest = statistics.median(self._decode) if plan.decode and self._decode else 0.0
            self._token.append(max(seconds - rest, 0.0) / tokens)

    def room(self, budget: int, widest: int) -> int:
        """Tokens of prompts in a step that others decode in, whole blocks of them: ``budget`` at most, and no fewer
        than ``widest``, which is what the last token of a prompt takes on all of its lanes."""
        if not self._slowdown or not self._decode or not self._token:
            return budget
        token = statistics.median(self._token)
        # Time that prompts may add to a step, turned into whole blocks of tokens.
        extra = statistics.median(self._decode) * (self._slowdown - 1)
        tokens = budget if token * budget <= extra else int(extra / token) // BLOCK_SIZE * BLOCK_SIZE
        return min(budget, max(tokens, _FEWEST, widest))
