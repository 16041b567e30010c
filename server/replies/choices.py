"""Finished continuations, and what a vote among them says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from ladle.guidance.plan import Rank
from ladle.server.engine.requests.request import Score, StepOutput
from ladle.server.text.patterns import found


@dataclass
class Choice:
    """One finished continuation."""

    outputs: list[StepOutput] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def reasoning(self) -> str | None:
        """The thought in front of the answer; None where there is none, or none is told apart."""
        parts = [output.reasoning for output in self.outputs if output.reasoning is not None]
        return "".join(parts) if parts else None

    @property
    def last(self) -> StepOutput:
        return self.outputs[-1]

    @property
    def finish_reason(self) -> str:
        return str(self.last.finish_reason)


async def voted(rank: Rank | None, choices: list[Choice], each: int) -> list[Choice]:
    """``choices``, ``each`` to a prompt, where a ranking by ``vote`` has them scored: how many of the answers to the
    prompt say the same, 0 for one in which the pattern finds nothing; what they were scored by before decides between
    equal ones. Answers that a monitor ended neither vote nor get votes. Without such a ranking, ``choices`` as they
    are.

    Raises:
        InputError: the pattern takes too long.
    """
    if rank is None or rank.by != "vote":
        return choices
    said = await found(rank.text, [choice.text for choice in choices], "steering.rank.by.vote")
    for start in range(0, len(choices), each):
        own = range(start, start + each)
        votes = Counter(said[index] for index in own if choices[index].last.tripped is None)
        votes[None] = 0
        for index in own:
            last = choices[index].last
            assert last.score is not None, "with a ranking every answer has a score"
            count = votes[said[index]] if last.tripped is None else 0
            score = Score(float(count), rank.by, second=last.score.value)
            choices[index].outputs[-1] = replace(last, score=score)
    return choices
