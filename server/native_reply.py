"""Answers of ``POST /v1/generate``: whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from ladle.server.engine.request import StepOutput
from ladle.server.generation import Choice, Job, usage
from ladle.server.reply_types import Generated, GeneratedChoice, Token, TokenEvent
from ladle.server.state import Serving
from ladle.server.steering import describe
from ladle.server.token_text import finite


def generated(serving: Serving, job: Job, model: str, choices: Sequence[Choice], tokens: bool, top: bool) -> Generated:
    """The whole answer; ``tokens`` lists every choice's tokens, ``top`` their alternatives too."""
    replies: list[GeneratedChoice] = []
    for index, choice in enumerate(choices):
        reply: GeneratedChoice = {"index": index, "text": choice.text, "finish_reason": choice.finish_reason}
        if tokens:
            reply["tokens"] = [token(serving, output, top) for output in choice.outputs]
        replies.append(reply)
    return _reply(job, model, replies, [choice.last for choice in choices])


def token(serving: Serving, output: StepOutput, top: bool) -> Token:
    """One token as traces show it."""
    reply: Token = {
        "id": output.token,
        "text": output.text,
        "logprob": finite(output.logprob),
        "base_logprob": None if output.base_logprob is None else finite(output.base_logprob),
        "shift": None if output.shift is None else finite(output.shift),
        "expert": None,
    }
    if top:
        reply["top"] = [
            {"id": other, "text": serving.tokens.text(other), "logprob": finite(logprob)}
            for other, logprob in output.top
        ]
    return reply


def _reply(job: Job, model: str, choices: list[GeneratedChoice], last: Sequence[StepOutput]) -> Generated:
    return {
        "id": f"gen-{uuid.uuid4().hex}",
        "object": "generation",
        "model": model,
        "created": int(time.time()),
        "seed": job.seed,
        "choices": choices,
        "usage": usage(job, last),
        "steering": describe(job.plan),
    }


class GenerateStream:
    """Events of a streamed generation: one a token, then one with everything but the texts."""

    def __init__(self, serving: Serving, job: Job, model: str, top: bool) -> None:
        self._serving = serving
        self._job = job
        self._model = model
        self._top = top

    def opening(self) -> Iterator[TokenEvent]:
        return iter(())

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[TokenEvent]:
        yield {"index": index, "token": token(self._serving, output, self._top)}

    def closing(self, outputs: list[StepOutput]) -> Iterator[Generated]:
        choices: list[GeneratedChoice] = [
            {"index": index, "finish_reason": str(output.finish_reason)} for index, output in enumerate(outputs)
        ]
        yield _reply(self._job, self._model, choices, outputs)
