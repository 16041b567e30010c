"""OpenAI's legacy completions as answers: whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from ladle.server.chat_reply import ends_text
from ladle.server.engine.request import StepOutput
from ladle.server.generation import Choice, Job, usage
from ladle.server.reply_types import Completion, CompletionChoice, CompletionLogprobs
from ladle.server.state import Serving
from ladle.server.steering import describe
from ladle.server.token_text import TokenText, finite
from ladle.server.trace_summary import TraceSummary


def completion(serving: Serving, job: Job, model: str, choices: Sequence[Choice], logprobs: int | None) -> Completion:
    """The whole answer; choices of several prompts follow each other, prompt by prompt."""
    reply = _Envelope(serving, model).of(
        [
            {
                "index": index,
                "text": choice.text,
                "logprobs": completion_logprobs(serving.tokens, choice.outputs, 0) if logprobs is not None else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
    )
    summary = TraceSummary(serving)
    for index, choice in enumerate(choices):
        summary.see(index, choice.outputs)
    reply["usage"] = usage(job, [choice.last for choice in choices])
    reply["steering"] = summary.add_to(describe(job.plan), tokens=True)
    return reply


def completion_logprobs(tokens: TokenText, outputs: Sequence[StepOutput], offset: int) -> CompletionLogprobs:
    """``logprobs`` of a choice or of a chunk, whose text begins at ``offset``.

    As in OpenAI's API the chosen token is always among the alternatives, so there may be one more than asked for.
    """
    reply: CompletionLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    alternatives: list[dict[str, float]] = []
    for output in outputs:
        if not ends_text(tokens, output):
            chosen = tokens.text(output.token)
            top = {tokens.text(token): finite(logprob) for token, logprob in reversed(output.top)}
            alternatives.append({**dict(reversed(top.items())), chosen: finite(output.logprob)})
            reply["tokens"].append(chosen)
            reply["token_logprobs"].append(finite(output.logprob))
            reply["text_offset"].append(offset)
        offset += len(output.text)
    reply["top_logprobs"] = alternatives
    return reply


class _Envelope:
    """What all chunks of an answer have in common."""

    def __init__(self, serving: Serving, model: str) -> None:
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._fingerprint = serving.fingerprint

    def of(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }


class CompletionStream:
    """Events of a streamed completion."""

    def __init__(self, serving: Serving, job: Job, model: str, logprobs: int | None, include_usage: bool) -> None:
        self._serving = serving
        self._job = job
        self._logprobs = logprobs is not None
        self._include_usage = include_usage
        self._envelope = _Envelope(serving, model)
        self._offsets = [0] * len(job.requests)
        self._summary = TraceSummary(serving)

    def opening(self) -> Iterator[Completion]:
        return iter(())

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[Completion]:
        self._summary.see(index, [output])
        logprobs = None
        if self._logprobs:
            logprobs = completion_logprobs(self._serving.tokens, [output], self._offsets[index])
        self._offsets[index] += len(output.text)
        if not output.text and output.finish_reason is None and not (logprobs and logprobs["tokens"]):
            return
        chunk = self._envelope.of(
            [{"index": index, "text": output.text, "logprobs": logprobs, "finish_reason": output.finish_reason}]
        )
        if self._include_usage:
            chunk["usage"] = None
        elif last:
            chunk["steering"] = self._summary.add_to(describe(self._job.plan), tokens=True)
        yield chunk

    def closing(self, outputs: list[StepOutput]) -> Iterator[Completion]:
        if self._include_usage:
            chunk = self._envelope.of([])
            chunk["usage"] = usage(self._job, outputs)
            chunk["steering"] = self._summary.add_to(describe(self._job.plan), tokens=True)
            yield chunk
