"""Speculation: tokens that text repeats, or a draft model guesses, are computed before they are drawn.

What a position draws is decided by its scores, the seed and the position. So a drafted token is right exactly where
it is the token that is drawn anyway, and then it is kept: the text is the same with drafts and without (our choice;
rejection sampling keeps the distribution, not the text).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.schedule.draft_pace import DraftPace, worthwhile
from ladle.server.engine.schedule.model_guesses import ModelGuesses, Wanted
from ladle.server.engine.schedule.ngram_index import NgramIndex
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.schedule.step_plan import StepPlan

logger = logging.getLogger(__name__)

NGRAM, MODEL = "ngram", "model"
"""Who drafts."""
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

    def __init__(self, scheduler: Scheduler, most: int, guesses: ModelGuesses | None = None) -> None:
        """``most``: tokens that repeat earlier text and that a sequence has drafted in a step; 0: none. ``guesses``: of
        the draft model, if there is one."""
        self.drafted = Counter({NGRAM: 0, MODEL: 0})
        self.accepted = Counter({NGRAM: 0, MODEL: 0})
        self._scheduler = scheduler
        self._most = most
        self._guesses = guesses
        self._authors: WeakKeyDictionary[Sequence, _Author] = WeakKeyDictionary()
        self._pace = DraftPace()
        self._step_rows = 0
        self._guessed: set[Sequence] = set()

    @property
    def guess_seconds(self) -> float:
        """What the draft model took so far."""
        return 0.0 if self._guesses is None else self._guesses.pace.seconds

    @property
    def held(self) -> int:
        """Sequences with a slot of which the draft model keeps state."""
        return 0 if self._guesses is None else self._guesses.held

    def plan(self, plan: StepPlan) -> None:
        """Add to ``plan`` what is worth being drafted: what text repeats first, and where there is no such thing what
        the draft model guesses."""
        self._step_rows = 0
        if not (self._most or self._guesses) or not plan.decode or plan.chunks:
            return
        # ``cost`` is what one more row adds to this step, as a share of it: None until such a step was seen without
        # drafts.
        self._step_rows = len(plan.lanes)
        cost = self._pace.row_cost(self._step_rows)
        if self._most:
            self._repeat(plan, cost)
        if self._guesses is not None:
            try:
                self._foretell(plan, cost, self._guesses)
            except Exception:
                # Nobody's answer depends on it. Were it the device that failed, the step itself will tell.
                logger.exception("the draft model failed, and guesses no more until the server is started again")
                self._guesses = None

    def _repeat(self, plan: StepPlan, cost: float | None) -> None:
        for sequence in plan.decode:
            author = self._author(sequence)
            # The guess is made in any case: whether it comes true is how the chance of later ones is known.
            author.guess = author.index.guess(min(self._most, _left(sequence)))
            if cost is None or not author.guess:
                continue
            count = min(len(author.guess), self._room(plan) // len(drafted_lanes(sequence)))
            self._add(plan, sequence, author.guess[: worthwhile(author.chance, _row_cost(plan, sequence, cost), count)])

    def _foretell(self, plan: StepPlan, cost: float | None, guesses: ModelGuesses) -> None:
        for sequence in plan.decode:
            guesses.follow(sequence)
        step = self._pace.step(self._step_rows)
        if cost is None or step is None:
            return
        wanted = {
            sequence: Wanted(min(guesses.most, _left(sequence)), _row_cost(plan, sequence, cost))
            for sequence in plan.decode
            if sequence not in plan.drafts
        }
        for sequence, guess in guesses.guess(wanted, step / len(plan.decode)).items():
            if self._add(plan, sequence, guess[: self._room(plan) // len(drafted_lanes(sequence))]):
                self._guessed.add(sequence)

    def _room(self, plan: StepPlan) -> int:
        """Rows that the token budget leaves."""
        return self._scheduler.max_batch_tokens - self._step_rows - _rows(plan)

    def _add(self, plan: StepPlan, sequence: Sequence, draft: Seq[int]) -> bool:
        """Have ``draft`` checked, if there is room for it."""
        if not draft or not _has_room(self._scheduler, sequence, len(draft)):
            return False
        plan.drafts[sequence] = tuple(draft)
        return True

    def note(self, plan: StepPlan, accepted: Seq[Sequence], seconds: float) -> None:
        """``plan`` took so long, all draws included, and of these sequences drafted tokens were drawn, one each time
        that they are named."""
        if self._step_rows:
            self._pace.note(self._step_rows, _rows(plan), seconds)
        for sequence, draft in plan.drafts.items():
            self.drafted[self._by(sequence)] += len(draft)
        self.accepted.update(map(self._by, accepted))
        self._guessed = set()

    def _by(self, sequence: Sequence) -> str:
        return MODEL if sequence in self._guessed else NGRAM

    def _author(self, sequence: Sequence) -> _Author:
        author = self._authors.get(sequence)
        if author is None:
            author = self._authors[sequence] = _Author(NgramIndex(sequence.request.prompt))
        # Preemption and steps without drafts do not matter: the index goes on from the last token that it has seen.
        author.follow(sequence.output)
        return author


def _left(sequence: Sequence) -> int:
    """Tokens that may come after the one that is due."""
    return sequence.request.sampling.max_tokens - len(sequence.output) - 1


def _row_cost(plan: StepPlan, sequence: Sequence, cost: float) -> float:
    """Of one drafted token of ``sequence``, as a share of what it saves: an accepted token saves this sequence's share
    of a step, and costs its lanes' rows. ``cost``: of one row, as a share of the step."""
    return cost * len(drafted_lanes(sequence)) * len(plan.decode)


def _rows(plan: StepPlan) -> int:
    """Rows, not tokens: a guided sequence computes a draft once per lane."""
    return sum(len(draft) * len(drafted_lanes(sequence)) for sequence, draft in plan.drafts.items())


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
