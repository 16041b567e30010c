"""The text of one request as it grows, and the rules that end it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from ladle.guidance.plan import Plan
from ladle.merging.errors import CodedText
from ladle.server.engine.requests.detokenizer import Detokenizer
from ladle.server.engine.requests.request import GenerationRequest, StepOutput, TokenTrace
from ladle.server.engine.requests.sequence import Sequence

NOT_FINITE = "scores_not_finite"
"""Code of the error of a request that asked for coefficients or strengths under which a model says nothing."""


class Answer:
    """Turns the tokens of ``request`` into outputs; ``eos``: the ids that end a text."""

    def __init__(self, request: GenerationRequest, tokenizer: PreTrainedTokenizerFast, eos: frozenset[int]) -> None:
        self.request = request
        sampling = request.sampling
        self._detokenizer = Detokenizer(
            tokenizer, request.prompt, sampling.stop, sampling.skip_special_tokens, sampling.include_stop
        )
        self._eos = eos

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
        sampling = self.request.sampling
        reason = None
        piece = text = ""
        named = token in sampling.stop_token_ids
        if (named and not sampling.include_stop) or (token in self._eos and not sampling.ignore_eos and not named):
            reason, text = "stop", self._detokenizer.finish()
        else:
            piece, text, stopped = self._detokenizer.push(token, stops=count >= sampling.min_tokens)
            if stopped:
                reason = "stop"
            elif ended or named:
                reason, text = "stop", text + self._detokenizer.finish()
            elif count >= sampling.max_tokens:
                reason, text = "length", text + self._detokenizer.finish()
        return StepOutput(
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
        )

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
