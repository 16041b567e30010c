"""OpenAI's legacy completions as answers: whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from ladle.server.engine.requests.request import StepOutput
from ladle.server.generation import Choice, Job, usage
from ladle.server.openai.chat_reply import ends_text
from ladle.server.openai.echo import Echo, alternatives_of
from ladle.server.replies.trace_summary import TraceSummary
from ladle.server.replies.types import Completion, CompletionChoice, CompletionLogprobs
from ladle.server.serving import Serving
from ladle.server.steering import describe
from ladle.server.token_text import TokenText, finite


def completion(
    serving: Serving,
    job: Job,
    model: str,
    choices: Sequence[Choice],
    logprobs: int | None,
    echo: Sequence[Echo] | None = None,
) -> Completion:
    """The whole answer; choices of several prompts follow each other, prompt by prompt. ``echo``: of every prompt."""
    replies: list[CompletionChoice] = []
    for index, choice in enumerate(choices):
        own = echo[index // job.choices] if echo else None
        front = own.text if own else ""
        found = completion_logprobs(serving.tokens, choice.outputs, len(front), own) if logprobs is not None else None
        replies.append(
            {
                "index": index,
                "text": front + choice.text,
                "logprobs": found,
                "finish_reason": choice.finish_reason,
            }
        )
    reply = _Envelope(serving, model).of(replies)
    summary = TraceSummary(serving)
    for index, choice in enumerate(choices):
        summary.see(index, choice.outputs)
    reply["usage"] = usage(job, [choice.last for choice in choices])
    reply["steering"] = summary.add_to(describe(job.plan), tokens=True)
    return reply


def completion_logprobs(
    tokens: TokenText, outputs: Sequence[StepOutput], offset: int, echo: Echo | None = None, complete: bool = False
) -> CompletionLogprobs:
    """``logprobs`` of a choice or of a chunk, whose text begins at ``offset``; those of ``echo`` come before it.

    The token that ends a text is no part of it and left out, except after an echo and where ``complete`` asks for it:
    who scores texts counts tokens, the prompt's and those of ``usage``.
    """
    reply: CompletionLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    if echo is not None:
        reply = echo.logprobs(outputs[0].prompt or ())
    for output in outputs:
        if output.token >= 0 and (echo is not None or complete or not ends_text(tokens, output)):
            reply["tokens"].append(tokens.key(output.token))
            reply["token_logprobs"].append(finite(output.logprob))
            reply["top_logprobs"].append(alternatives_of(tokens, output.top, output.token, output.logprob))
            reply["text_offset"].append(offset)
        offset += len(output.text)
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

    def __init__(
        self,
        serving: Serving,
        job: Job,
        model: str,
        logprobs: int | None,
        include_usage: bool,
        echo: Sequence[Echo] | None = None,
    ) -> None:
        self._serving = serving
        self._job = job
        self._logprobs = logprobs is not None
        self._include_usage = include_usage
        self._envelope = _Envelope(serving, model)
        self._echo = echo
        self._begun = [False] * len(job.requests)
        self._offsets = [0] * len(job.requests)
        self._summary = TraceSummary(serving)

    def opening(self) -> Iterator[Completion]:
        return iter(())

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[Completion]:
        self._summary.see(index, [output])
        echo, text = None, output.text
        if self._echo and not self._begun[index]:
            echo = self._echo[index // self._job.choices]
            text = echo.text + text
            self._offsets[index] = len(echo.text)
        self._begun[index] = True
        logprobs = None
        if self._logprobs:
            offset, complete = self._offsets[index], self._echo is not None
            logprobs = completion_logprobs(self._serving.tokens, [output], offset, echo, complete)
        self._offsets[index] += len(output.text)
        if not text and output.finish_reason is None and not (logprobs and logprobs["tokens"]):
            return
        chunk = self._envelope.of(
            [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": output.finish_reason}]
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
