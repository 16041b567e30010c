"""Answers that are watched: tokens leave the engine once no monitor can take them back any more.

The answer is an ordinary sequence, with a lane for each value that watches it: what a monitor says of a token comes
with the next one. What it says of the last token, and what the base answers when it is asked about a sentence, are
sequences of their own, which batch with everything else. What is shown depends on the answer alone, not on what it was
batched with.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

from ladle.guidance.plan import BASE, Monitor
from ladle.server.engine.led_answer import LedAnswer
from ladle.server.engine.questions import about, ask, bare, logistic
from ladle.server.engine.requests.answer import without_token
from ladle.server.engine.requests.request import StepOutput, Trip
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.requests.watch import Sentences, Watch


@dataclass(frozen=True)
class _Question:
    """What a sequence asks: ``watch`` about its part ``index``. ``yes``: how likely yes is, or no; None for a value."""

    watch: Watch
    index: int
    yes: bool | None = None


class MonitoredAnswer(LedAnswer):
    """One request on its way, whose plan has monitors."""

    def _set_up(self) -> None:
        watches = [Watch(monitor) for monitor in self.request.plan.monitors]
        self._valued = [watch for watch in watches if watch.monitor.source is not None]
        self._asking = [(watch, Sentences()) for watch in watches if watch.monitor.question is not None]
        self._watches = watches
        self._tokens: list[int] = []
        self._held: deque[StepOutput] = deque()
        self._first: StepOutput | None = None
        self._shown = 0
        self._thought = 0  # tokens of the thought that were shown
        self._ended = False
        self._questions: dict[str, _Question] = {}
        self._likely: dict[tuple[Watch, int], dict[bool, float]] = {}
        self._asked = 0

    def begin(self) -> None:
        """Write the answer, under the request's own id: whoever changes its steering finds it there."""
        self._run(self._whole, self._take)

    def cancel(self) -> None:
        """Forget it all."""
        for name in (self.request.request_id, *self._questions):
            self._stop(name)
        self._questions = {}

    @property
    def _told(self) -> list[int]:
        return self._tokens[: self._shown]

    def _follow(self, outputs: list[StepOutput]) -> None:
        try:
            self._watch(outputs)
        except NotFiniteError as error:
            self._fail("error", str(error))

    def _watch(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            if output.request_id == self.request.request_id:
                if self._failed(output):
                    return
                self._written(output)
            elif output.request_id in self._questions:
                if self._failed(output):
                    return
                self._answered(self._questions.pop(output.request_id), output)
            else:
                continue
            if self._settle():
                return

    # -- what is judged -------------------------------------------------------------------------------------------

    def _written(self, output: StepOutput) -> None:
        """One more token of the answer, and what was said of the one before it."""
        if self._first is None:
            self._first = output
        self._tokens.append(output.token)
        self._held.append(output)
        count = len(self._tokens)
        # Values come with the forward of the next token: this one says what the token before it is worth.
        for watch, value in zip(self._valued, output.watched, strict=False):
            self._judge(watch, count - 2, value)
        for watch in self._valued:
            watch.ended(count)
        self._ended = output.finish_reason is not None
        # Questions come at the ends of sentences, and at the end of the answer where something is left over.
        for watch, sentences in self._asking:
            if sentences.push(output.token_text) or (self._ended and (sentences.says or not watch.ends)):
                self._ask(watch, watch.ended(count))
            elif self._ended:
                watch.extend(count)
        if self._ended:
            for watch in self._valued:
                self._value(watch, count - 1)

    def _judge(self, watch: Watch, index: int, said: float) -> None:
        value = logistic(said) if watch.monitor.probability else said
        if math.isnan(value):
            raise NotFiniteError(watch.monitor)
        watch.judged(index, value)

    def _answered(self, question: _Question, output: StepOutput) -> None:
        if question.yes is None:
            assert output.value is not None
            self._judge(question.watch, question.index, output.value)
            return
        # The one judged token is the word itself; p(yes) / (p(yes) + p(no)) follows from the difference of both.
        (token,) = output.prompt or ()
        likely = self._likely.setdefault((question.watch, question.index), {})
        likely[question.yes] = token.logprob
        if len(likely) == 2:
            self._judge(question.watch, question.index, logistic(likely[True] - likely[False]))

    def _value(self, watch: Watch, index: int) -> None:
        """Ask the value of ``watch`` about the whole answer, up to its last token."""
        # The last token has no next forward that would bring its value: a lane like the one that watched is asked about
        # the whole.
        lanes = [lane for lane in self._whole.lanes if lane.watches]
        lane = lanes[self._valued.index(watch)].asked()
        plan = bare(self.request.plan, (lane.source,))
        own = about(self.request, f"v{self._watches.index(watch)}", plan, SamplingParams(1))
        self._start(Sequence(own, [lane], output=list(self._tokens), ahead=True), _Question(watch, index))

    def _ask(self, watch: Watch, index: int) -> None:
        """Ask the base about the answer so far: how likely yes and no are after the question."""
        assert watch.monitor.question is not None
        name = f"q{self._watches.index(watch)}.{index}"
        asked = ask(self.request, name, watch.monitor.question, self._tokens, self._ends, BASE)
        self._asked += asked.tokens
        for word, own in ((True, asked.yes), (False, asked.no)):
            self._start(Sequence(own, self._lanes(own), ahead=True), _Question(watch, index, word))

    def _start(self, part: Sequence, question: _Question) -> None:
        self._questions[part.request_id] = question
        self._run(part, self._take)

    # -- what is shown --------------------------------------------------------------------------------------------

    def _settle(self) -> bool:
        """Show what may be shown, or end the answer; whether it has ended."""
        # ``settled``: tokens on which every monitor has had its say. A trip counts once all tokens before it are
        # settled, because another monitor might trip earlier.
        tripped = [watch.trip for watch in self._watches if watch.trip is not None]
        first = min(tripped, key=lambda trip: trip.token, default=None)
        settled = min(watch.settled(len(self._tokens)) for watch in self._watches)
        if first is not None and settled >= first.token:
            self._trip(first)
            return True
        if first is None and self._ended and settled == len(self._tokens):
            self._hand_over(self._released(len(self._tokens)))
            return True
        # Others are asked what they say up to where one has tripped: what is shown does not depend on who is first.
        count = self._free(settled if first is None else min(settled, first.token - 1))
        outputs = self._released(self._complete(count))
        if outputs:
            self._hand_over(outputs)
        return False

    def _hand_over(self, outputs: list[StepOutput]) -> None:
        """Hand over outputs, the first one with what was asked since those before."""
        asked, self._asked = self._asked + outputs[0].asked, 0
        self._deliver([replace(outputs[0], asked=asked), *outputs[1:]])

    def _free(self, settled: int) -> int:
        return min(watch.free(settled) for watch in self._watches)

    def _complete(self, count: int) -> int:
        """Up to how many tokens, at most ``count``, the text is as it would be if the answer ended there: what is held
        back waits with its tokens, because it would still come with the last of them."""
        while count > self._shown and self._held[count - self._shown - 1].cut is not None:
            count -= 1
        return count

    def _released(self, count: int) -> list[StepOutput]:
        """The outputs of the tokens up to ``count``, as far as they have not left."""
        outputs = []
        while self._shown < count:
            self._shown += 1
            outputs.append(self._traced(replace(self._held.popleft(), watched=(), cut=None), self._shown))
            self._thought = outputs[-1].reasoning_tokens
        return outputs

    def _traced(self, output: StepOutput, count: int) -> StepOutput:
        if output.trace is None:
            return output
        said = {watch.monitor.name: watch.said(count) for watch in self._watches}
        known = {name: value for name, value in said.items() if value is not None}
        return replace(output, trace=replace(output.trace, monitors=known))

    def _trip(self, trip: Trip) -> None:
        """End the answer: what no monitor took back is shown whole, the rest never leaves."""
        count = self._free(trip.token - 1)
        if count > self._shown:
            # The last token that is shown: its text goes out as if the answer ended there, held-back bytes and stop
            # strings included.
            last = self._held[count - self._shown - 1]
            if last.cut is not None:
                self._held[count - self._shown - 1] = replace(last, **vars(last.cut))
        outputs = self._released(count)
        self.cancel()
        assert self._first is not None
        end = without_token(Sequence(self.request, [], output=self._tokens[: self._shown]), "content_filter", None, "")
        end = replace(
            end,
            cached_tokens=self._first.cached_tokens,
            tripped=trip,
            reasoning_tokens=self._thought,
            unseen=len(self._tokens) - self._shown + sum(output.unseen for output in self._held),
            asked=sum(output.asked for output in self._held),
        )
        if not self._shown:
            end = replace(end, prompt=self._first.prompt, queued_s=self._first.queued_s)
        self._hand_over([*outputs, end])


class NotFiniteError(ValueError):
    """A monitor says nothing that could be compared."""

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(f"what monitor {monitor.name} says is not a number")
