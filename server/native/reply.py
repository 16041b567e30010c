"""Answers of ``POST /v1/generate``: whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from ladle.server.engine.requests.request import StepOutput
from ladle.server.generation import Choice, Job, usage
from ladle.server.replies.trace_summary import TraceSummary, token
from ladle.server.replies.types import Generated, GeneratedChoice, TokenEvent
from ladle.server.serving import Serving
from ladle.server.steering import describe


def generated(serving: Serving, job: Job, model: str, choices: Sequence[Choice], tokens: bool, top: bool) -> Generated:
    """The whole answer; ``tokens`` lists every choice's tokens, ``top`` their alternatives too."""
    replies: list[GeneratedChoice] = []
    summary = TraceSummary(serving)
    for index, choice in enumerate(choices):
        summary.see(index, choice.outputs)
        reply: GeneratedChoice = {"index": index, "text": choice.text, "finish_reason": choice.finish_reason}
        if tokens:
            reply["tokens"] = [token(serving, output, top) for output in choice.outputs]
        replies.append(reply)
    return _reply(job, model, replies, [choice.last for choice in choices], summary)


def _reply(
    job: Job, model: str, choices: list[GeneratedChoice], last: Sequence[StepOutput], summary: TraceSummary
) -> Generated:
    return {
        "id": f"gen-{uuid.uuid4().hex}",
        "object": "generation",
        "model": model,
        "created": int(time.time()),
        "seed": job.seed,
        "choices": choices,
        "usage": usage(job, last),
        "steering": summary.add_to(describe(job.plan)),
    }


class GenerateStream:
    """Events of a streamed generation: one a token, then one with everything but the texts."""

    def __init__(self, serving: Serving, job: Job, model: str, top: bool) -> None:
        self._serving = serving
        self._job = job
        self._model = model
        self._top = top
        self._summary = TraceSummary(serving)

    def opening(self) -> Iterator[TokenEvent]:
        return iter(())

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[TokenEvent]:
        self._summary.see(index, [output])
        yield {"index": index, "token": token(self._serving, output, self._top)}

    def closing(self, outputs: list[StepOutput]) -> Iterator[Generated]:
        choices: list[GeneratedChoice] = [
            {"index": index, "finish_reason": str(output.finish_reason)} for index, output in enumerate(outputs)
        ]
        yield _reply(self._job, self._model, choices, outputs, self._summary)
