"""The text of one request as it grows, and the rules that end it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from copy import copy
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from ladle.guidance.plan import Plan
from ladle.merging.exceptions import CodedText
from ladle.server.engine.requests.detokenizer import Detokenizer
from ladle.server.engine.requests.request import Ending, GenerationRequest, StepOutput, TokenTrace
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.requests.thinking import Placed, Thinking, Thought, ThoughtPhase

NOT_FINITE = "scores_not_finite"
"""Code of the error of a request that asked for coefficients or strengths under which a model says nothing."""


class Answer:
    """Turns the tokens of ``request`` into outputs; ``eos``: the ids that end a text."""

    def __init__(self, request: GenerationRequest, tokenizer: PreTrainedTokenizerFast, eos: frozenset[int]) -> None:
        self.request = request
        sampling = request.sampling
        self._tokenizer = tokenizer
        self._detokenizer = self._answer_after(request.prompt)
        self._eos = eos
        thinking = request.thinking
        self._thought = None if thinking is None else Thought(thinking)
        if thinking is not None:
            opening = request.prompt if thinking.opened else (*request.prompt, *thinking.open)
            self._thoughts = Detokenizer(tokenizer, opening, (), sampling.skip_special_tokens)

    def copy(self) -> Answer:
        """One that goes on from here by itself."""
        other = copy(self)
        other._detokenizer = self._detokenizer.copy()
        if self._thought is not None:
            other._thought, other._thoughts = self._thought.copy(), self._thoughts.copy()
        return other

    def behind(self, thinking: Thinking | None, tokens: Seq[int]) -> Answer:
        """This answer, with a thought that is where ``thinking`` has it after ``tokens``, which came before."""
        self._thought = None if thinking is None else Thought(thinking).follow(tokens)
        return self

    def push(
        self,
        token: int,
        count: int,
        cached_tokens: int,
        logprob: float,
        top: tuple[tuple[int, float], ...],
        trace: TokenTrace | None,
        expert: str | None = None,
        ended: bool = False,
    ) -> StepOutput:
        """The output for the ``count``-th token; it has a finish reason where a stop rule says so. ``ended``: no text
        can follow, because a grammar says so."""
        # With a thought, where the token belongs is decided first: it may be the thought's, a tag's, or release tokens
        # that were held for the answer.
        reasoning = None
        if self._thought is None or self._thought.phase is ThoughtPhase.AFTER:
            piece, text, reason = self._answered(token, count, ended)
        else:
            piece, text, reason, reasoning = self._placed(self._thought, token, count, ended)
        output = StepOutput(
            request_id=self.request.request_id,
            token=token,
            token_text=piece,
            text=text,
            logprob=logprob,
            top=top,
            trace=trace,
            finish_reason=reason,
            prompt_tokens=len(self.request.prompt),
            cached_tokens=cached_tokens,
            completion_tokens=count,
            expert=expert,
            stop=self._detokenizer.stop,
            reasoning=reasoning,
            reasoning_tokens=0 if self._thought is None else self._thought.tokens,
        )
        if reason is None and self.request.plan.monitors and self._holds:
            return replace(output, cut=self._cut(output))
        return output

    @property
    def _holds(self) -> bool:
        """Whether there is text that a token has brought and no output has shown."""
        thought = self._thought
        return self._detokenizer.holds or (thought is not None and (thought.holds or self._thoughts.holds))

    def _cut(self, output: StepOutput) -> Ending:
        """What ``output`` would show if it were the last one; what comes goes on as if nothing had been asked."""
        # A copy is brought to its end as if nothing more came; this answer goes on untouched.
        twin = self.copy()
        if twin._thought is None:
            return Ending(output.text + twin.finish(), None, 0)
        text, thought = twin._rest(twin._thought)
        reasoning = None if output.reasoning is None else output.reasoning + thought
        return Ending(output.text + text, reasoning, twin._thought.tokens)

    def _answered(self, token: int, count: int, ended: bool) -> tuple[str, str, str | None]:
        """The text of a token of the answer, what may be shown now, and why the answer ends if it does."""
        sampling = self.request.sampling
        # Stop rules by precedence: a stop token or end-of-text that is not shown, stop strings, what is shown and then
        # ends, and last the length.
        named = token in sampling.stop_token_ids
        if (named and not sampling.include_stop) or (token in self._eos and not sampling.ignore_eos and not named):
            return "", self._detokenizer.finish(), "stop"
        piece, text, stopped = self._detokenizer.push(token, stops=count >= sampling.min_tokens)
        if stopped:
            return piece, text, "stop"
        if ended or named:
            return piece, text + self._detokenizer.finish(), "stop"
        if count >= sampling.max_tokens:
            return piece, text + self._detokenizer.finish(), "length"
        return piece, text, None

    def _placed(self, thought: Thought, token: int, count: int, ended: bool) -> tuple[str, str, str | None, str | None]:
        """What a token adds that comes before it is known to be the answer's own, and what it adds to the thought.
        Stop strings and stop tokens do nothing there; what ends a text, ends it there too."""
        # An end of text within a thought ends it all: the answer is empty, and what was held of the thought is shown.
        inside, sampling = thought.phase is ThoughtPhase.INSIDE, self.request.sampling
        if inside and token in self._eos and not sampling.ignore_eos and thought.forced is None:
            return "", "", "stop", self._thinks(thought.finish(), closed=True)
        # A token may release several: what could have become the opening tag turns out to be the answer's.
        placed = thought.push(token)
        text, reason = "", None
        piece = "" if placed.answer else self._tokenizer.decode([token])
        for index, own in enumerate(placed.answer):
            last = index == len(placed.answer) - 1
            piece, shown, reason = self._answered(own, count if last else min(count, sampling.max_tokens - 1), ended)
            text += shown
            if reason is not None:
                break
        closed = thought.phase is ThoughtPhase.AFTER
        if reason is None and not placed.answer and count >= sampling.max_tokens:
            # The length ends it before its answer has begun: all that was held back comes out, where it belongs.
            said = self._thinks(placed, closed=False)
            text, rest = self._rest(thought)
            return piece, text, "length", None if placed.own else said + rest
        reasoning = None if placed.own else self._thinks(placed, closed)
        if inside and thought.phase is ThoughtPhase.AFTER:
            assert self.request.thinking is not None
            self._detokenizer = self._answer_after((*self.request.prompt, *self.request.thinking.close))
        return piece, text, reason, reasoning

    def _rest(self, thought: Thought) -> tuple[str, str]:
        """What of the answer and of the thought has not been shown, when no more tokens come."""
        rest = thought.finish()
        text = "".join(self._detokenizer.push(own, stops=False)[1] for own in rest.answer)
        return text + self._detokenizer.finish(), self._thinks(rest, closed=True)

    def _thinks(self, placed: Placed, closed: bool) -> str:
        """What of the thought may be shown now; ``closed``: no more of it comes."""
        text = "".join(self._thoughts.push(token)[1] for token in placed.thought)
        return text + self._thoughts.finish() if closed else text

    def _answer_after(self, tokens: Seq[int]) -> Detokenizer:
        sampling = self.request.sampling
        return Detokenizer(self._tokenizer, tokens, sampling.stop, sampling.skip_special_tokens, sampling.include_stop)

    def finish(self) -> str:
        """The rest of the text, when no more tokens come."""
        return self._detokenizer.finish()


def not_finite(plan: Plan) -> str:
    """Why a request ends whose scores are NaN: what it asked for, or the weights as they are."""
    if all(source.plain for source in plan.sources):
        return "the model's own scores are not finite"
    text = "the scores are not finite: what was asked for takes the weights too far from the base"
    return CodedText(NOT_FINITE, text)


def without_token(sequence: Sequence, reason: str, error: str | None, text: str) -> StepOutput:
    """The last output of a request that ends without a token."""
    return StepOutput(
        request_id=sequence.request_id,
        token=-1,
        token_text="",
        text=text,
        logprob=0.0,
        top=(),
        trace=None,
        finish_reason=reason,
        prompt_tokens=len(sequence.request.prompt),
        cached_tokens=sequence.cached_tokens,
        completion_tokens=len(sequence.output),
        error=error,
    )
