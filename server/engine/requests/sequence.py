"""One continuation being generated, and the lanes (one a source) that carry its state."""

from __future__ import annotations

import copy
import itertools
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ladle.guidance.plan import Plan, Source
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.kv.block_hashes import BlockHashes
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.requests.lane_head import LaneHead
from ladle.server.engine.requests.queue import Ticket
from ladle.server.engine.requests.request import GenerationRequest, PromptToken
from ladle.server.engine.requests.thinking import Thought

_arrivals = itertools.count()


class Lane:
    """The KV state of one source of one sequence.

    ``row`` is its row in the lane table (None while it waits); ``blocks`` its KV blocks; ``scratch`` blocks for the
    state of candidates, in a lane that scores; ``materialised`` the part of its weights that lives outside the bank.
    ``lazy``: its tokens are computed when the router chooses it and not before; its blocks are there all the same, so
    that it never lacks room then.
    """

    def __init__(
        self,
        source: Source,
        weights: WeightsKey,
        prompt: tuple[int, ...],
        bank: frozenset[str],
        head: LaneHead | None = None,
        salt: bytes = b"",
        watches: bool = False,
    ) -> None:
        """``watches``: its head values the token that was drawn, and no candidates."""
        self.source = source
        self.lazy = False
        self.watches = watches
        self.weights = weights
        self.prompt = prompt
        self.head = head
        self.coefficients: Mapping[str, float] = weights.coefficients()
        # Terms of the bank are coefficients of rows in one shared forward; what is left needs weights of its own.
        self.materialised = WeightsKey(
            weights.base_revision, tuple(term for term in weights.terms if term[0] not in bank)
        )
        self.hashes = BlockHashes(weights, salt)
        self.row: int | None = None
        self.blocks: list[int] = []
        self.scratch: list[int] = []
        self.published = 0

    @property
    def scores(self) -> bool:
        """Whether it gives values of candidates instead of logits.

        Such a lane is never short of a last token whose logits are wanted: before a step it lacks nothing, or the one
        token that was drawn from outside its candidates.
        """
        return self.head is not None and not self.watches

    def asked(self) -> Lane:
        """A lane like this one, which watched and holds nothing any more, to be asked about a whole text."""
        assert self.watches and self.row is None and not self.blocks
        lane = copy.copy(self)
        lane.watches, lane.source = False, replace(self.source, weight=1.0)
        lane.blocks, lane.scratch = [], []
        return lane

    def begin(self) -> None:
        """Belong to another text from here on: what was named and published of the last one says nothing of it."""
        assert not self.blocks
        self.hashes, self.published = self.hashes.emptied(), 0

    @property
    def speaks(self) -> bool:
        """Whether it gives logits."""
        return self.head is None


@dataclass(frozen=True, eq=False)
class Change:
    """Another plan for a sequence on its way.

    Attributes:
        start: it takes over once so many tokens have come.
        request: the sequence's own, with the other plan and the views of the prompt that it has.
        lanes: fresh ones for its sources.
    """

    start: int
    request: GenerationRequest
    lanes: list[Lane]


@dataclass(eq=False)
class Sequence:
    """A request with its progress. All lanes share the continuation ``output``; a lane may have its own prompt.

    Attributes:
        request: what was asked for; a plan that takes over makes another one of it.
        lanes: one per source of the plan, in its order.
        output: token ids drawn so far.
        slot: its slot in the tables of a step; None while it waits.
        cached_tokens: prompt tokens whose state was reused.
        restarts: how often it gave up what it held and was taken up again: when it was preempted, and when its plan
            changed.
        finished: whether it has ended.
        arrival: its number in the order of arrival.
        submitted_at, admitted_at: seconds on the monotonic clock; the latter is None while it has never had a slot.
        speaker: the expert of the last token and how many in a row it has written; no expert yet is -1.
        ticket: its place in the queue, until it has had its turn.
        judged: what was said of the prompt's tokens from the second on, where that was asked for.
        changes: plans that are still to take over, in the order in which they do.
        began: the plan that took over since the last token, until its first one is there.
        asks_entropy: whether the entropy of the distribution of its next token is asked for.
        ahead: whether it goes before all that waits: an answer that has had its turn ends with it.
    """

    request: GenerationRequest
    lanes: list[Lane]
    output: list[int] = field(default_factory=list)
    slot: int | None = None
    cached_tokens: int = 0
    restarts: int = 0
    finished: bool = False
    arrival: int = field(default_factory=lambda: next(_arrivals))
    submitted_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None
    speaker: tuple[int, int] = (-1, 0)
    ticket: Ticket | None = None
    judged: list[PromptToken] = field(default_factory=list)
    changes: deque[Change] = field(default_factory=deque)
    began: Plan | None = None
    asks_entropy: bool = False
    ahead: bool = False

    _thought: Thought | None = None

    def __post_init__(self) -> None:
        # Lanes that were another text's may come with names of its blocks, under which this one's would be looked for.
        for lane in self.lanes:
            lane.begin()

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def thought(self) -> Thought | None:
        """Where its tokens so far stand in the thought in front of the answer; None where no such thing is looked
        for."""
        if self.request.thinking is None:
            return None
        if self._thought is None:
            self._thought = Thought(self.request.thinking)
        return self._thought.follow(self.output)

    def leave_queue(self) -> None:
        """Its turn has come, or it is given up."""
        if self.ticket is not None:
            self.ticket.leave()

    @property
    def queued_s(self) -> float | None:
        """Seconds from its arrival to the first step that it took part in; None before that."""
        return None if self.admitted_at is None else self.admitted_at - self.submitted_at

    def due(self) -> Change | None:
        """The change that its tokens so far have brought about, taken out of ``changes``; None where none has."""
        change = None
        # Several may be due at once; the last one counts.
        while self.changes and self.changes[0].start <= len(self.output):
            change = self.changes.popleft()
        return change

    def follow(self, change: Change) -> None:
        """Go on under another plan, holding nothing: no state that it had was computed under the new weights. Text,
        penalties, grammar, the thought and the positions of draws go on from where they are."""
        # Where its thought ends may have been found out since the request was made.
        self.request = replace(change.request, thinking=self.request.thinking)
        self.lanes, self.began = change.lanes, change.request.plan
        self.speaker = (-1, 0)
        if self.judging:
            self.judged.clear()  # what is said of the prompt comes from one plan

    def length(self, lane: Lane) -> int:
        """Tokens of ``lane`` so far, prompt and continuation."""
        return len(lane.prompt) + len(self.output)

    @property
    def eager(self) -> list[Lane]:
        """The lanes that are never behind."""
        return [lane for lane in self.lanes if not lane.lazy]

    @property
    def judging(self) -> bool:
        """Whether the logits of prompt tokens are still wanted, so that none of these may come from a cache."""
        sampling = self.request.sampling
        return sampling.prompt_logprobs and len(self.judged) < len(self.request.prompt) - sampling.judged_from

    @property
    def candidates(self) -> int:
        """How many candidates get a value in each step; 0 without a scorer."""
        scorer = self.request.plan.scorer
        return 0 if scorer is None else scorer.candidates

    @property
    def draws(self) -> bool:
        """Whether it gets tokens; one without a language model asks only what its values say of the text."""
        return any(not lane.scores for lane in self.lanes)

    def draws_on(self, lane: Lane) -> bool:
        """Whether ``lane`` needs a place for a token that is not there yet: the candidate that will be drawn."""
        return lane.scores and self.draws

    def scratch_blocks(self, lane: Lane) -> int:
        """Blocks for the state of the candidates of a lane that scores."""
        return -(-self.candidates // BLOCK_SIZE) if lane.scores else 0

    def tokens(self, lane: Lane, start: int, stop: int) -> list[int]:
        """Tokens ``start`` to ``stop`` of ``lane``."""
        # A span may lie in the lane's own prompt, in the shared continuation, or across the border.
        prompt_length = len(lane.prompt)
        head = list(lane.prompt[start:stop]) if start < prompt_length else []
        return head + self.output[max(0, start - prompt_length) : max(0, stop - prompt_length)]
