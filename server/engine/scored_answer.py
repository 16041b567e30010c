"""Answers with a score: what a plan's ranking says of a text once it has ended.

The answer is an ordinary sequence, and so is every question about it afterwards: one for each source that judges, over
the prompt and the answer. They batch with everything else, and the answers to one prompt share its state; the request
itself is no sequence.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ladle.guidance.plan import Plan, Source
from ladle.server.engine.led_answer import LedAnswer
from ladle.server.engine.questions import AskedRequests, about, ask, bare, by_itself, likelihood, said
from ladle.server.engine.requests.answer import not_finite, without_token
from ladle.server.engine.requests.request import Score, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Sequence

_ANSWER = "answer"


class ScoredAnswer(LedAnswer):
    """One request on its way, whose plan has a ``rank``; its last output waits for the score."""

    def _set_up(self) -> None:
        self._tokens: list[int] = list(self.request.answer or ())
        self._logprobs: list[float] = []
        given = without_token(Sequence(self.request, []), "length", None, "")
        self._last = replace(given, prompt_tokens=given.prompt_tokens + len(self._tokens))
        self._said: dict[str, float] = {}
        self._pending: set[str] = set()
        self._asked: AskedRequests | None = None

    def begin(self) -> None:
        """Write the answer, or judge the one that is there."""
        if self.request.answer is None:
            own = replace(self.request, request_id=self._name(_ANSWER))
            self._start(Sequence(own, self._whole.lanes))
        else:
            self._ask()

    def cancel(self) -> None:
        """Forget it all."""
        for name in list(self._pending):
            self._stop(name)
        self._pending = set()

    @property
    def _told(self) -> list[int]:
        return self._tokens

    def _start(self, part: Sequence) -> None:
        self._pending.add(part.request_id)
        self._run(part, self._take)

    def _follow(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            if output.request_id not in self._pending:
                continue
            if output.finish_reason is not None:
                self._pending.remove(output.request_id)
            # The answer itself goes on under the request's id, all but its last output; everything else is what a judge
            # says.
            if output.request_id == self._name(_ANSWER):
                self._written(replace(output, request_id=self.request.request_id))
            elif not self._failed(output):
                if self.request.answer is not None and not self._said:
                    self._last = replace(self._last, cached_tokens=output.cached_tokens, queued_s=output.queued_s)
                self._said[output.request_id] = said(output)
                if self._asked is not None and output.request_id == self._asked.yes.request_id:
                    self._start(Sequence(self._asked.no, self._lanes(self._asked.no)))
                if not self._pending:
                    self._conclude()

    def _written(self, output: StepOutput) -> None:
        """One more token of the answer, or its end."""
        if output.token >= 0:
            # Kept for the questions, which read the answer once more.
            self._tokens.append(output.token)
            self._logprobs.append(output.logprob)
        if output.finish_reason in ("stop", "length", "content_filter"):
            self._last = output
            self._ask()
        else:
            self._deliver([output])

    def _ask(self) -> None:
        """The answer is there: ask everything about it that is not known."""
        rank = self.request.plan.rank
        assert rank is not None
        if rank.question is not None:
            # Whether it is no is asked once it is known whether it is yes, whose state it shares.
            self._asked = ask(self.request, "q", rank.question, self._tokens, self._ends, rank.sources[0])
            self._start(Sequence(self._asked.yes, self._lanes(self._asked.yes)))
            return
        # One sequence per source of the ranking, all in one batch. Of an answer that was written here the likelihood is
        # the sum of its own logprobs; of a given one it has to be computed.
        parts = [self._question(index, source) for index, source in enumerate(self.request.plan.ranking)]
        if not parts and self.request.answer is not None:
            plan = replace(self.request.plan, trace=False, rank=None, monitors=())
            parts = [self._likelihood("0", plan, self.request.prompt)]
        asked = [part for part in parts if part is not None]
        for part in asked:
            self._start(part)
        if not asked:
            self._conclude()

    def _question(self, index: int, source: Source) -> Sequence | None:
        """What ``source`` says of the answer; None where that is known without asking."""
        plan = bare(self.request.plan, (by_itself(source, seen=not source.head),))
        if not source.head:
            return self._likelihood(str(index), plan, self.request.prompt_of(source)) if self._tokens else None
        own = about(self.request, str(index), plan, SamplingParams(1))
        return Sequence(own, self._lanes(own), output=list(self._tokens))

    def _likelihood(self, name: str, plan: Plan, prompt: tuple[int, ...]) -> Sequence:
        own = likelihood(self.request, name, plan, prompt, self._tokens)
        return Sequence(own, self._lanes(own))

    def _conclude(self) -> None:
        """Everything is known: give out the end of the answer with its score."""
        rank = self.request.plan.rank
        assert rank is not None
        if self._asked is not None:
            # Log-odds of yes against no.
            values = [self._said[self._asked.yes.request_id] - self._said[self._asked.no.request_id]]
        else:
            values = [self._said.get(self._name(str(index)), 0.0) for index in range(len(rank.sources))]
        parts = tuple(zip(rank.sources, values, strict=True))
        if parts:
            total = sum(source.weight * value for source, value in parts)
        else:
            total = self._said.get(self._name("0"), math.fsum(self._logprobs))
        if math.isnan(total):
            self._fail("error", not_finite(self.request.plan))
            return
        # Per token: else longer answers would lose for their length alone.
        value = total / max(1, len(self._tokens)) if rank.per == "token" else total
        asked = self._last.asked + (self._asked.tokens if self._asked is not None else 0)
        self._deliver([replace(self._last, score=Score(value, rank.by, parts), asked=asked)])
