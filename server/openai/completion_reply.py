"""OpenAI's legacy completions as answers: whole and streamed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ladle.server.engine.requests.request import StepOutput
from ladle.server.generation import Job, usage, usage_so_far
from ladle.server.openai.chat_reply import ends_text
from ladle.server.openai.completion_requests import UsageInStream
from ladle.server.openai.echo import Echo, alternatives_of
from ladle.server.openai.text_offsets import TextOffsets
from ladle.server.prompt_report import prompt_report
from ladle.server.ranked_choices import best_first, number
from ladle.server.replies.choices import Choice
from ladle.server.replies.reply_types import Completion, CompletionChoice, CompletionLogprobs
from ladle.server.replies.trace_summary import TraceSummary
from ladle.server.serving import Serving
from ladle.server.steering import describe
from ladle.server.streaming import EventWriter
from ladle.server.text.token_text import TokenText, finite


def completion(
    serving: Serving,
    job: Job,
    model: str,
    choices: Sequence[Choice],
    logprobs: int | None,
    echo: Sequence[Echo] | None = None,
    prompt_logprobs: int | None = None,
) -> Completion:
    """The whole answer; choices of several prompts follow each other, prompt by prompt. ``echo``: of every prompt.
    ``prompt_logprobs``: alternatives at every token of the prompts; None reports none."""
    replies: list[CompletionChoice] = []
    shown = best_first(job, choices)
    for index, choice in enumerate(shown):
        own = echo[index // job.kept] if echo else None
        echoed = own.text if own else ""
        reported = None
        if logprobs is not None:
            offsets = TextOffsets(serving.tokens, len(echoed))
            reported = completion_logprobs(serving.tokens, choice.outputs, offsets, own)
        reply_of_choice: CompletionChoice = {
            "index": index,
            "text": echoed + choice.text,
            "logprobs": reported,
            "finish_reason": choice.finish_reason,
        }
        if choice.last.score is not None:
            reply_of_choice["score"] = number(choice.last.score.value)
        if prompt_logprobs is not None:
            ids = job.prompts[index // job.kept].ids
            reply_of_choice["prompt_logprobs"] = prompt_report(serving.tokens, ids, choice, prompt_logprobs)
        replies.append(reply_of_choice)
    reply = _Envelope(serving, job, model).of(replies)
    summary = TraceSummary(serving)
    for index, choice in enumerate(shown):
        summary.see(index, choice.outputs)
    reply["usage"] = usage(job, [choice.last for choice in choices])
    reply["steering"] = summary.add_to(describe(job.plan), tokens=True)
    return reply


def completion_logprobs(
    tokens: TokenText,
    outputs: Sequence[StepOutput],
    offsets: TextOffsets,
    echo: Echo | None = None,
    complete: bool = False,
) -> CompletionLogprobs:
    """``logprobs`` of a choice or of a chunk, whose tokens lie where ``offsets`` says; those of ``echo`` come before.

    The token that ends a text is no part of it and left out, except after an echo and where ``complete`` asks for it:
    who scores texts counts tokens, the prompt's and those of ``usage``.
    """
    reply: CompletionLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    if echo is not None:
        reply = echo.logprobs(outputs[0].prompt or ())
    for output in outputs:
        offset = offsets.next(output)
        if output.token >= 0 and (echo is not None or complete or not ends_text(tokens, output)):
            reply["tokens"].append(tokens.key(output.token))
            reply["token_logprobs"].append(finite(output.logprob))
            reply["top_logprobs"].append(alternatives_of(tokens, output.top, output.token, output.logprob))
            reply["text_offset"].append(offset)
    return reply


class _Envelope:
    """What all chunks of an answer have in common."""

    def __init__(self, serving: Serving, job: Job, model: str) -> None:
        self._id = f"cmpl-{job.id}"
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


class CompletionStream(EventWriter):
    """Events of a streamed completion."""

    def __init__(
        self,
        serving: Serving,
        job: Job,
        model: str,
        logprobs: int | None,
        usage_shown: UsageInStream,
        echo: Sequence[Echo] | None = None,
    ) -> None:
        self._serving = serving
        self._job = job
        self._logprobs = logprobs is not None
        self._usage = usage_shown
        self._seen: dict[int, StepOutput] = {}
        self._envelope = _Envelope(serving, job, model)
        self._echo = echo
        self._begun = [False] * len(job.requests)
        self._offsets = [
            TextOffsets(serving.tokens, len(echo[index // job.choices].text) if echo else 0)
            for index in range(len(job.requests))
        ]
        self._summary = TraceSummary(serving)

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[Completion]:
        self._summary.see(index, [output])
        self._seen[index] = output
        echo, text = None, output.text
        if self._echo and not self._begun[index]:
            echo = self._echo[index // self._job.choices]
            text = echo.text + text
        self._begun[index] = True
        logprobs = None
        if self._logprobs:
            complete = self._echo is not None
            logprobs = completion_logprobs(self._serving.tokens, [output], self._offsets[index], echo, complete)
        if not text and output.finish_reason is None and not (logprobs and logprobs["tokens"]):
            return
        chunk = self._envelope.of(
            [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": output.finish_reason}]
        )
        if self._usage:
            chunk["usage"] = usage_so_far(self._job, self._seen) if self._usage is UsageInStream.ALWAYS else None
        elif last:
            chunk["steering"] = self._summary.add_to(describe(self._job.plan), tokens=True)
        yield chunk

    def closing(self, outputs: list[StepOutput]) -> Iterator[Completion]:
        if self._usage:
            chunk = self._envelope.of([])
            chunk["usage"] = usage(self._job, outputs)
            chunk["steering"] = self._summary.add_to(describe(self._job.plan), tokens=True)
            yield chunk
