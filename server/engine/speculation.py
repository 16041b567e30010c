"""Draws on from what a step computed for drafted tokens, as far as these are the tokens that were drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq

from ladle.server.engine.model_runner import ModelRunner
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.schedule.drafts import Drafts, confirmed, drafted_lanes
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.schedule.step_plan import StepPlan, account_tokens
from ladle.server.engine.step_result import StepResult

logger = logging.getLogger(__name__)


class Speculation:
    """What a step does besides where tokens are drafted. For the engine's thread.

    Args:
        scheduler: keeps count of what lanes have computed.
        runner: holds the scores of the drafted tokens until the next step.
        drafts: what is drafted.
        tell: records the tokens of one round of draws.
        lose: ends sequences whose round failed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        drafts: Drafts,
        tell: Callable[[Seq[Sequence], StepResult], None],
        lose: Callable[[Seq[Sequence], Exception], None],
    ) -> None:
        self.drafts = drafts
        self._scheduler = scheduler
        self._runner = runner
        self._tell = tell
        self._lose = lose

    def draw_on(self, plan: StepPlan) -> list[Sequence]:
        """More tokens for the sequences of ``plan`` whose first token was the drafted one; whose they were, once for
        every drafted token that was drawn. Each round is like the draws of a step of its own, whose forward is there
        already."""
        # A sequence leaves the loop at its first token that was guessed wrongly; what it drew there stands all the
        # same.
        going = list(plan.drafts)
        accepted: list[Sequence] = []
        for index in range(max(map(len, plan.drafts.values()), default=0)):
            # Accept by comparison: position index + 1 is drawn only where the token before it is the one that was
            # drafted.
            going = confirmed({sequence: plan.drafts[sequence] for sequence in going}, index, self._scheduler)
            if not going:
                break
            accepted += going
            account_tokens(going)
            try:
                result = self._runner.again(going)
            except Exception as error:
                logger.exception("a drafted token could not be followed")
                self._lose(going, error)
                break
            # An expert with too much to make up for gives no token in this step; the next one asks its router again.
            going = [sequence for sequence in going if sequence not in result.caught_up.behind]
            for sequence in going:
                # The KV state of an accepted token is there already: it counts as computed from now on. What was
                # rejected lies beyond ``computed`` and is overwritten.
                for lane in drafted_lanes(sequence):
                    self._scheduler.extend(sequence, lane, 1)
            self._tell(going, result)
        return accepted
