"""Answers in blocks: continuations of some tokens are drawn, the texts that are judged best are kept, and so on.

Controlled decoding's second mode (arXiv 2310.17022) asks values once a block instead of at every token. Blocks that end
where a sentence does, as many draws as doubt asks for, and a likelihood to choose by are Cautious Next Token
Prediction's (arXiv 2507.03038). The draws of a round are ordinary sequences that share the text so far, and so are the
questions about them, so that they batch with everything else; the request itself is no sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ladle.guidance.plan import Plan
from ladle.server.engine.led_answer import LedAnswer
from ladle.server.engine.questions import bare, by_itself, likelihood, said
from ladle.server.engine.requests.answer import Answer, not_finite
from ladle.server.engine.requests.drawn_text import DrawnText, distinct, in_common
from ladle.server.engine.requests.request import GenerationRequest, Spent, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.requests.watch import Sentences
from ladle.server.engine.scores.slot_tables import draw_keys

_MASK = (1 << 64) - 1
_NOTHING = Spent(0, 0)


@dataclass(eq=False)
class _Branch:
    """A text that is drawn on: the ``place`` that it has among those that were kept, the ``text`` that all of its
    continuations begin with, and the texts that they are. ``sure``: as long as one continuation is enough."""

    place: int
    text: DrawnText
    drawn: list[DrawnText]
    sure: bool


@dataclass(eq=False)
class _Draw:
    """A sequence that writes a continuation. ``first``: the tokens in front of its block; ``ends``: where that ends."""

    branch: _Branch
    text: DrawnText
    sequence: Sequence
    first: int
    ends: Sentences | None


class BlockSearch(LedAnswer):
    """One request on its way, whose plan has ``blocks``."""

    def _set_up(self) -> None:
        request = self.request
        assert request.plan.blocks is not None
        self.blocks = request.plan.blocks
        self._drawing = replace(request.plan, sources=request.plan.writing, blocks=None)
        most = self.blocks.count * self.blocks.beam
        seeds = draw_keys(np.full(most, request.sampling.seed & _MASK, dtype=np.uint64), np.arange(most))
        # The first continuation is what the request would get without blocks.
        self._seeds = [request.sampling.seed, *seeds.view(np.uint64)[1:, 0].tolist()]
        self._branches: list[_Branch] = []
        self._draws: dict[str, _Draw] = {}
        self._asked: dict[str, tuple[DrawnText, int]] = {}
        self._said: dict[tuple[DrawnText, int], float] = {}
        self._round = 0
        self._shown = 0
        self._spent = _NOTHING
        self._cached_tokens = 0

    def write_on(self, answer: Answer) -> None:
        """Let ``answer``, which has no token yet, make text of the tokens. To be called before ``begin``."""
        self._kept = [DrawnText(answer)]

    def begin(self) -> None:
        """Draw the blocks of a round."""
        # Every text of the beam that has not ended is drawn on; while doubt decides, one draw does until a token is
        # unsure.
        going = [text for text in self._kept if not text.ended]
        sure = self.blocks.entropy is not None
        self._branches = [_Branch(place, text, [], sure) for place, text in enumerate(going)]
        for branch in self._branches:
            count = 1 if sure else self.blocks.count
            for index in range(count):
                self._draw(branch, index, count)

    def cancel(self) -> None:
        """Forget it all."""
        for name in (*self._draws, *self._asked):
            self._stop(name)
        self._draws, self._asked = {}, {}

    # -- draws ----------------------------------------------------------------------------------------------------

    def _draw(self, branch: _Branch, index: int, count: int, entropy: float | None = None) -> None:
        """Start the continuation ``index`` of ``count`` of a text, because its next token has ``entropy``."""
        # A seed for each place in the beam and each draw: what is drawn depends on neither batch nor order.
        place = branch.place * self.blocks.count + index
        first = len(branch.text.tokens)
        # One whose entropy is looked at may begin its block as late as after the longest one that is sure.
        longest = 2 * self.blocks.length if branch.sure else self.blocks.length
        most = min(self.request.sampling.max_tokens, first + longest)
        sampling = replace(self.request.sampling, max_tokens=most, seed=self._seeds[place], stop=())
        own = self._own(f"{self._round}.{place}", self._drawing, sampling)
        sequence = Sequence(own, self._lanes(own), output=list(branch.text.tokens), asks_entropy=branch.sure)
        text = branch.text.next()
        text.draws, text.entropy = count, entropy
        branch.drawn.append(text)
        self._draws[own.request_id] = _Draw(branch, text, sequence, first, self._boundary())
        self._spent = replace(self._spent, draws=self._spent.draws + 1)
        self._run(sequence, self._take)

    def _boundary(self) -> Sentences | None:
        return None if self.blocks.ends is None else Sentences(parts=self.blocks.ends == "punctuation")

    def _own(self, name: str, plan: Plan, sampling: SamplingParams) -> GenerationRequest:
        return replace(self.request, request_id=self._name(name), plan=plan, sampling=sampling)

    def _follow(self, outputs: list[StepOutput]) -> None:
        # Outputs are of draws or of questions; those of sequences that were stopped in this very step come too late.
        for output in outputs:
            draw, asked = self._draws.get(output.request_id), self._asked.get(output.request_id)
            if draw is None and asked is None:
                continue
            if self._failed(output):
                return
            if draw is not None:
                self._drawn(output, draw)
            elif asked is not None:
                del self._asked[output.request_id]
                self._said[asked] = said(output)
        if not self._draws and not self._asked:
            if self._said:
                self._choose()
            else:
                self._value()

    def _drawn(self, output: StepOutput, draw: _Draw) -> None:
        """One more token of a continuation."""
        if not self._round and draw.branch.drawn[0] is draw.text and not self._shown:
            self._cached_tokens = output.cached_tokens
        self._spent = replace(self._spent, tokens=self._spent.tokens + 1)
        # In order: doubt first, for it may turn this draw into one of several; then text and stop strings; then the
        # block's end.
        if draw.branch.sure:
            self._consider(output, draw)
        text = draw.text
        if text.ended:
            text.tokens.append(output.token)  # of a block that is judged as a whole, behind a stop string
            ended = False
        else:
            ended = text.push(output) and self.blocks.option == "search"
        # A block ends by length, or where a sentence does; one that is still sure has no end of its own.
        long = len(text.tokens) - draw.first >= self.blocks.length
        if not draw.branch.sure and draw.ends is not None and not ended:
            long = draw.ends.push(text.outputs[-1].token_text) or long
        if output.finish_reason is not None:
            del self._draws[output.request_id]
        elif ended or long:
            del self._draws[output.request_id]
            self._stop(output.request_id)
        elif draw.branch.sure and len(self._kept) == 1:
            self._show([text])

    def _consider(self, output: StepOutput, draw: _Draw) -> None:
        """Whether one continuation is enough at a token, or a block of several begins with it."""
        assert output.entropy is not None
        branch, text = draw.branch, draw.text
        count = self.blocks.draws(output.entropy)
        if count == 1:
            return
        # Here the text forks: what was drawn so far becomes the common stem, this token begins the first continuation,
        # and the others are drawn from the stem.
        branch.sure, draw.sequence.asks_entropy = False, False
        if text.outputs:
            branch.text, draw.text, draw.first = text, text.next(), len(text.tokens)
            branch.drawn = [draw.text]
        draw.text.draws, draw.text.entropy = count, output.entropy
        for index in range(1, count):
            self._draw(branch, index, count, output.entropy)

    # -- judgement ------------------------------------------------------------------------------------------------

    def _value(self) -> None:
        """All blocks are drawn: ask about those that differ."""
        # Draws that agree token by token are one candidate; it is judged once.
        texts = list(distinct(text for branch in self._branches for text in branch.drawn))
        for branch in self._branches:
            branch.drawn = [text for text in branch.drawn if text in texts]
            for text in branch.drawn if not branch.sure else ():
                text.blocks += 1
                text.likely += math.fsum(output.logprob for output in text.outputs) / len(text.outputs)
        for index, text in enumerate(texts):
            for place, source in enumerate(self.blocks.sources if self.blocks.by == "implicit" else ()):
                # By itself: its own view of the prompt is all there is.
                plan, seen = bare(self.request.plan, (by_itself(source),)), self.request.prompt_of(source)
                name = f"{self._round}.v{index}.{place}"
                own = likelihood(self.request, name, plan, seen, text.tokens, text.judged)
                self._ask(Sequence(own, self._lanes(own)), (text, place))
            if self.blocks.by == "explicit":
                plan = bare(self.request.plan, self.blocks.sources)
                own = self._own(f"{self._round}.v{index}", plan, self.request.sampling)
                self._ask(Sequence(own, self._lanes(own), output=list(text.tokens)), (text, 0))
        if self.blocks.by == "likelihood":
            self._choose()

    def _ask(self, question: Sequence, about: tuple[DrawnText, int]) -> None:
        self._asked[question.request_id] = about
        self._run(question, self._take)

    def _choose(self) -> None:
        """All blocks are judged: keep the best texts, the first of equal ones."""
        for text in (text for branch in self._branches for text in branch.drawn):
            text.score = self._score(text)
            if text.score is not None and math.isnan(text.score):
                self._fail("error", not_finite(self.request.plan))
                return
        self._said = {}
        # Ended texts keep their place among the others, so that equal scores are decided by the order of the draws.
        drawn = iter(self._branches)
        texts = [one for text in self._kept for one in ([text] if text.ended else next(drawn).drawn)]
        best = sorted(distinct(texts), key=lambda text: text.score or 0.0, reverse=True)
        self._kept = best[: self.blocks.beam]
        if all(text.ended for text in self._kept):
            self._show(self._kept[:1])
            return
        self._show(self._kept)
        self._round += 1
        self.begin()

    def _score(self, text: DrawnText) -> float | None:
        """See ``ladle.guidance.plan.Blocks``; None where nothing was drawn beside any block of it."""
        if self.blocks.by == "likelihood":
            return text.likely / text.blocks if text.blocks else None
        if self.blocks.by == "explicit":
            value = self._said[text, 0]
            if text.whole:
                text.outputs[-1] = replace(text.outputs[-1], value=value)
            return value
        # Implicit values add up token by token: only the block that is new was asked about, and is added to what the
        # text had.
        new = [self._said[text, place] for place in range(len(self.blocks.sources))]
        before = text.parts or (0.0,) * len(new)
        text.parts = tuple(old + more for old, more in zip(before, new, strict=True))
        text.judged = len(text.tokens)
        return math.fsum(source.weight * part for source, part in zip(self.blocks.sources, text.parts, strict=True))

    # -- what is shown --------------------------------------------------------------------------------------------

    def _show(self, texts: list[DrawnText]) -> None:
        """Hand over what ``texts`` have in common and was not shown yet."""
        outputs = texts[0].shown(self._shown, in_common(texts), told=self.blocks.option == "search")
        if not outputs:
            return
        self._shown += len(outputs)
        outputs = [replace(output, cached_tokens=self._cached_tokens, spent=_NOTHING) for output in outputs]
        outputs[0] = replace(outputs[0], spent=self._spent)
        self._spent = _NOTHING
        self._deliver(outputs)

    @property
    def _told(self) -> list[int]:
        return self._kept[0].tokens[: self._shown]

    @property
    def _untold(self) -> str:
        text = self._kept[0]
        return text.answer.finish() if self._shown == len(text.tokens) else ""
