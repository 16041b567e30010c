"""Thoughts that a verifier ends: the base is asked on the way whether what was thought so far holds the answer.

The answer goes on while it is asked, as an ordinary sequence; the questions are sequences of their own. What was
written behind a thought that turns out to be enough is forgotten, and the answer is taken up from there, by a thought
whose budget ends there. So tokens leave once no verdict can take them back any more, and what is shown depends on the
answer alone, not on how soon a question is answered.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from ladle.guidance.plan import BASE, Plan
from ladle.server.engine.led_answer import LedAnswer, Sink
from ladle.server.engine.questions import AskedRequests, ask, logistic, said
from ladle.server.engine.requests.answer import Answer
from ladle.server.engine.requests.request import CheckedThought, GenerationRequest, StepOutput
from ladle.server.engine.requests.sequence import Change, Sequence
from ladle.server.engine.requests.thinking import Thought, ThoughtPhase
from ladle.server.engine.requests.watch import Sentences

Standing = tuple[Sequence, Answer]
"""A sequence as it is served, and its text."""


@dataclass
class _Check:
    """What is asked once there are ``count`` tokens, ``written`` of them the thought's, and all that it takes to go on
    from there: how the sequence stood then.

    Attributes:
        values: what was said of the words that were asked about so far.
    """

    count: int
    written: int
    request: GenerationRequest
    changes: tuple[Change, ...]
    began: Plan | None
    speaker: tuple[int, int]
    answer: Answer
    asked: AskedRequests
    values: dict[str, float] = field(default_factory=dict)

    @property
    def likely(self) -> float | None:
        """The probability of yes against no; None until both are known."""
        if len(self.values) < 2:
            return None
        return logistic(self.values[self.asked.yes.request_id] - self.values[self.asked.no.request_id])


class VerifiedThought(LedAnswer):
    """One request on its way, whose thought has a verifier.

    It is served under its own id, so that whoever changes its steering finds it there.
    """

    def _set_up(self) -> None:
        thinking = self.request.thinking
        assert thinking is not None and thinking.verifier is not None
        self._thinking, self._verifier = thinking, thinking.verifier
        self._thought: Thought | None = Thought(thinking)
        self._sentences = Sentences()
        self._checked = 0  # tokens of the thought up to the last check
        self._read = 0  # tokens of the answer up to there
        self._tokens: list[int] = []
        self._held: deque[StepOutput] = deque()
        self._first: StepOutput | None = None
        self._checks: deque[_Check] = deque()
        self._asked = 0
        self._unseen = 0
        self._part = 0

    def serve_by(
        self, standing: Callable[[str], Standing | None], serve: Callable[[Sequence, Answer, Sink], None]
    ) -> None:
        """Take what a sequence stands at by ``standing``, by its id, and serve one whose text has begun by ``serve``.
        To be called before ``begin``."""
        self._standing, self._serve = standing, serve

    def begin(self) -> None:
        """Write the answer."""
        self._run(self._whole, partial(self._take_part, 0))

    def cancel(self) -> None:
        """Forget it all."""
        self._part += 1
        self._stop(self.request.request_id)
        self._drop_checks()

    @property
    def _shown(self) -> int:
        return len(self._tokens) - len(self._held)

    @property
    def _told(self) -> list[int]:
        return self._tokens[: self._shown]

    def _take_part(self, part: int, outputs: list[StepOutput]) -> None:
        """Outputs of the answer; those of a sequence that was given up come too late."""
        if part == self._part:
            self._take(outputs)

    def _follow(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            if output.request_id == self.request.request_id:
                if self._failed(output):
                    return
                self._written(output)
            elif (check := self._check_of(output.request_id)) is not None:
                if self._failed(output):
                    return
                check.values[output.request_id] = said(output)
                if output.request_id == check.asked.yes.request_id:
                    self._ask(check.asked.no)
        self._settle()

    def _check_of(self, request_id: str) -> _Check | None:
        pending = (check for check in self._checks if check.likely is None)
        return next((c for c in pending if request_id in (c.asked.yes.request_id, c.asked.no.request_id)), None)

    # -- what is asked --------------------------------------------------------------------------------------------

    def _written(self, output: StepOutput) -> None:
        """One more token of the answer."""
        if self._first is None:
            self._first = output
        self._tokens.append(output.token)
        self._held.append(replace(output, cached_tokens=self._first.cached_tokens, unseen=self._unseen))
        self._unseen = 0
        thought = self._thought
        if thought is None:
            return
        # A check comes at the end of a sentence inside the thought, where a budget could end it, and not before
        # ``every`` tokens.
        inside = thought.phase is ThoughtPhase.INSIDE
        thought.push(output.token)
        if thought.phase is ThoughtPhase.AFTER or output.finish_reason is not None:
            self._thought = None
            return
        ends = inside and self._sentences.push(output.token_text)
        if ends and thought.may_end and thought.written - self._checked >= self._verifier.every:
            self._check(thought.written)

    def _check(self, written: int) -> None:
        standing = self._standing(self.request.request_id)
        assert standing is not None, "it goes on"
        sequence, answer = standing
        count = len(self._tokens)
        # A snapshot of everything that going on from here takes: the text state, pending changes of steering, the
        # router's speaker.
        asked = ask(self.request, f"t{count}", self._verifier.question, self._tokens, self._ends, BASE)
        changes, began = tuple(sequence.changes), sequence.began
        self._checks.append(
            _Check(count, written, sequence.request, changes, began, sequence.speaker, answer.copy(), asked)
        )
        self._asked += count - self._read + asked.tokens
        self._checked, self._read = written, count
        # Whether it is no is asked once it is known whether it is yes, whose state it shares.
        self._ask(asked.yes)

    def _ask(self, request: GenerationRequest) -> None:
        self._run(Sequence(request, self._lanes(request), ahead=True), self._take)

    def _drop_checks(self) -> None:
        for check in self._checks:
            for request in (check.asked.yes, check.asked.no):
                self._stop(request.request_id)
        self._checks.clear()

    # -- what is shown --------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Act on the verdicts that are there, in the order of their checks, and show what no other can take back."""
        while self._checks and (likely := self._checks[0].likely) is not None:
            check = self._checks.popleft()
            if math.isnan(likely):
                self._fail("error", "what the verifier says of the thought is not a number")
                return
            ends = likely > self._verifier.above
            index = check.count - 1 - self._shown
            self._held[index] = replace(self._held[index], checked=CheckedThought(check.count, likely, ends))
            if ends:
                self._go_on_from(check)
        # Tokens up to the oldest open check may leave, without its last one, which would carry the verdict.
        free = len(self._tokens) if not self._checks else self._checks[0].count - 1
        outputs = [self._held.popleft() for _ in range(free - self._shown)]
        if outputs:
            asked, self._asked = self._asked, 0
            self._deliver([replace(outputs[0], asked=asked), *outputs[1:]])

    def _go_on_from(self, check: _Check) -> None:
        """Let the thought end where ``check`` found it to be enough, whatever was written since."""
        # What was written while the question was on its way is forgotten, and counted as tokens that nobody saw.
        late = len(self._tokens) - check.count
        dropped = [self._held.pop() for _ in range(late)][::-1]
        del self._tokens[check.count :]
        # Roll back: forget the tokens behind the check, stop the sequence that wrote them, and serve one that begins
        # with those in front of it, whose budget is used up so that the closing tag is forced.
        plan = self._steered_to(dropped)
        self._part += 1
        self._stop(self.request.request_id)
        self._drop_checks()
        self._thought, self._unseen = None, late
        thinking = replace(self._thinking, budget=check.written, verifier=None)
        request = replace(check.request if plan is None else replace(self.request, plan=plan), thinking=thinking)
        later = () if plan is not None else check.changes
        sequence = Sequence(
            request,
            self._lanes(request),
            output=list(self._tokens),
            changes=deque(Change(change.start, change.request, self._lanes(change.request)) for change in later),
            began=check.began if plan is None else plan,
            speaker=check.speaker if plan is None else (-1, 0),
            ahead=True,
        )
        answer = check.answer.behind(thinking, self._tokens)
        self._serve(sequence, answer, partial(self._take_part, self._part))

    def _steered_to(self, dropped: list[StepOutput]) -> Plan | None:
        """The plan that somebody has asked for since: it stands, unlike what a schedule brought meanwhile."""
        standing = self._standing(self.request.request_id)
        began = [output.began for output in dropped] + ([standing[0].began] if standing is not None else [])
        own = [part.plan for part in self.request.plan.schedule]
        return next((plan for plan in began[::-1] if plan is not None and not any(plan is one for one in own)), None)
