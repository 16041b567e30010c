"""Speculation: tokens that repeat earlier text are computed before they are drawn, and kept where they are drawn.

What a position draws is decided by its scores, the seed and the position. So a drafted token is right exactly where
it is the token that is drawn anyway: the text is the same with drafts and without (our choice; rejection sampling keeps
the distribution, not the text).
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.schedule.draft_pace import DraftPace, worthwhile
from ladle.server.engine.schedule.ngram_index import NgramIndex
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.schedule.step_plan import StepPlan

_FIRST_CHANCE = 0.5
_NEWEST = 0.125
"""Weight of the newest guess in the chance that the next one is right."""


@dataclass
class _Author:
    """The guesses at one sequence.

    Attributes:
        index: its text as far as it was seen.
        written: tokens of the answer that are in the index.
        guess: what was held to come next, checked or not.
        chance: that a token of a guess is right.
    """

    index: NgramIndex
    written: int = 0
    guess: tuple[int, ...] = ()
    chance: float = _FIRST_CHANCE

    def follow(self, output: list[int]) -> None:
        """Learn from the tokens that have come. A guess counts up to its first wrong token, whether or not anybody had
        it checked: what is not drafted costs nothing and still teaches."""
        # What came since the last look, whether by drafts or without, is compared with what had been guessed.
        came = output[self.written :]
        for guessed, token in zip(self.guess, came, strict=False):
            self.chance += _NEWEST * ((guessed == token) - self.chance)
            if guessed != token:
                break
        self.index.extend(came)
        self.written = len(output)


class Drafts:
    """Drafts for the sequences of a step that decode. For the engine's thread.

    Drafts are for steps without prompts: a step that reads prompts has no time left.
    """

    def __init__(self, scheduler: Scheduler, most: int) -> None:
        """``most``: tokens that a sequence has drafted in a step; 0: none."""
        self.drafted = 0
        self.accepted = 0
        self._scheduler = scheduler
        self._most = most
        self._authors: WeakKeyDictionary[Sequence, _Author] = WeakKeyDictionary()
        self._pace = DraftPace()
        self._step_rows = 0

    def plan(self, plan: StepPlan) -> None:
        """Add to ``plan`` what is worth being drafted."""
        self._step_rows = 0
        if not self._most or not plan.decode or plan.chunks:
            return
        # ``cost`` is what one more row adds to this step, as a share of it: None until such a step was seen without
        # drafts. ``room``: rows that the token budget leaves.
        self._step_rows = len(plan.lanes)
        cost = self._pace.row_cost(self._step_rows)
        room = self._scheduler.max_batch_tokens - self._step_rows
        for sequence in plan.decode:
            author = self._author(sequence)
            # The guess is made in any case: whether it comes true is how the chance of later ones is known.
            left = sequence.request.sampling.max_tokens - len(sequence.output) - 1
            author.guess = author.index.guess(min(self._most, left))
            if cost is None or not author.guess:
                continue
            # An accepted token saves this sequence's share of a step, and costs its lanes' rows.
            lanes = drafted_lanes(sequence)
            count = min(len(author.guess), room // len(lanes))
            count = worthwhile(author.chance, cost * len(lanes) * len(plan.decode), count)
            if count and _has_room(self._scheduler, sequence, count):
                plan.drafts[sequence] = author.guess[:count]
                room -= count * len(lanes)

    def note(self, plan: StepPlan, accepted: int, seconds: float) -> None:
        """``plan`` took so long, all draws included, and so many drafted tokens were drawn."""
        # Rows, not tokens: a guided sequence computes a draft once per lane.
        drafted_rows = sum(len(draft) * len(drafted_lanes(sequence)) for sequence, draft in plan.drafts.items())
        if self._step_rows:
            self._pace.note(self._step_rows, drafted_rows, seconds)
        self.drafted += sum(map(len, plan.drafts.values()))
        self.accepted += accepted

    def _author(self, sequence: Sequence) -> _Author:
        author = self._authors.get(sequence)
        if author is None:
            author = self._authors[sequence] = _Author(NgramIndex(sequence.request.prompt))
        # Preemption and steps without drafts do not matter: the index goes on from the last token that it has seen.
        author.follow(sequence.output)
        return author


def _has_room(scheduler: Scheduler, sequence: Sequence, count: int) -> bool:
    """Blocks on every lane for ``count`` tokens after the one that is due, as long as nobody else could be short of
    them soon; on one that scores for one more, the candidate that will be drawn after them."""
    # Drafts must preempt nobody: one spare block for each running lane and each of one's own stays free.
    if scheduler.blocks.free < len(sequence.lanes) + sum(len(other.lanes) for other in scheduler.running):
        return False
    return all(scheduler.grow(lane, sequence.length(lane) + count + lane.scores) for lane in sequence.lanes)


def drafted_lanes(sequence: Sequence) -> list[Lane]:
    """The lanes of ``sequence`` that compute drafted tokens: those that give logits with every token."""
    return [lane for lane in sequence.eager if not lane.scores]


def confirmed(drafts: dict[Sequence, tuple[int, ...]], index: int, scheduler: Scheduler) -> list[Sequence]:
    """Whose token number ``index`` of the draft was drawn, so that the scores after it are there to draw from.

    A lane that scores has to have that token's state, too: one that was drawn from outside the candidates has not.
    """
    return [
        sequence
        for sequence, draft in drafts.items()
        if len(draft) > index
        and sequence.slot is not None
        and sequence.output[-1] == draft[index]
        and all(scheduler.missing(sequence, lane) == 0 for lane in sequence.eager if lane.scores)
    ]
