"""The choices of an answer in the order of their scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ladle.server.generation import Choice, Job

_MOST = sys.float_info.max


def best_first(job: Job, choices: Sequence[Choice]) -> list[Choice]:
    """The choices that are returned, prompt by prompt: with a ranking the best of each, best first, equal ones in the
    order in which they were asked for; without one all, as they are."""
    if job.plan.rank is None:
        return list(choices)
    found: list[Choice] = []
    for start in range(0, len(choices), job.choices):
        own = choices[start : start + job.choices]
        found += sorted(own, key=_score, reverse=True)[: job.kept]
    return found


def _score(choice: Choice) -> float:
    assert choice.last.score is not None, "with a ranking every answer has a score"
    return choice.last.score.value


def number(score: float) -> float:
    """A score that JSON can carry: the greatest number there is stands for infinity."""
    return min(_MOST, max(-_MOST, score))
