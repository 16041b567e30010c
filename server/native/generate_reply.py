"""Answers of ``POST /v1/generate``: whole and streamed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ladle.server.engine.requests.request import StepOutput
from ladle.server.fields.tool_calling import ToolCalling
from ladle.server.generation import Job, usage
from ladle.server.openai.chat_reply import calls_in, reason_of
from ladle.server.prompt_report import prompt_report
from ladle.server.ranked_choices import best_first, number
from ladle.server.replies.choices import Choice
from ladle.server.replies.reply_types import Generated, GeneratedChoice, TokenEvent
from ladle.server.replies.trace_summary import TraceSummary, token
from ladle.server.serving import Serving
from ladle.server.steering import describe
from ladle.server.streaming import EventWriter


def generated(
    serving: Serving,
    job: Job,
    model: str,
    choices: Sequence[Choice],
    tokens: bool,
    top: bool,
    prompt_logprobs: int | None = None,
    calling: ToolCalling | None = None,
) -> Generated:
    """The whole answer; ``tokens`` lists every choice's tokens, ``top`` their alternatives too. ``prompt_logprobs``:
    alternatives at every token of the prompt; None reports none. With ``calling`` the calls in the texts are apart."""
    replies: list[GeneratedChoice] = []
    summary = TraceSummary(serving)
    for index, choice in enumerate(best_first(job, choices)):
        summary.see(index, choice.outputs)
        text, calls, called = calls_in(choice.text, calling)
        reason = reason_of(choice.finish_reason, called)
        reply: GeneratedChoice = {"index": index, "text": text, "finish_reason": reason}
        if job.thinks:
            reply["reasoning_content"] = choice.reasoning
        if choice.last.score is not None:
            reply["score"] = number(choice.last.score.value)
        if calls:
            reply["tool_calls"] = calls
        if tokens:
            reply["tokens"] = [token(serving, output, top) for output in choice.outputs if output.tripped is None]
        replies.append(reply)
    reply_of_all = _reply(job, model, replies, [choice.last for choice in choices], summary)
    if prompt_logprobs is not None:
        report = prompt_report(serving.tokens, job.prompts[0].ids, choices[0], prompt_logprobs)
        reply_of_all["prompt_logprobs"] = report
    return reply_of_all


def _reply(
    job: Job, model: str, choices: list[GeneratedChoice], last: Sequence[StepOutput], summary: TraceSummary
) -> Generated:
    return {
        "id": f"gen-{job.id}",
        "object": "generation",
        "model": model,
        "created": int(time.time()),
        "seed": job.seed,
        "choices": choices,
        "usage": usage(job, last),
        "steering": summary.add_to(describe(job.plan)),
    }


class GenerateStream(EventWriter):
    """Events of a streamed generation: one per token, as it was written, then one with everything but the texts; where
    calls were written, they stand in the last one."""

    def __init__(self, serving: Serving, job: Job, model: str, top: bool, calling: ToolCalling | None = None) -> None:
        self._calling = calling
        self._texts = [""] * len(job.requests) if calling is not None else []
        self._serving = serving
        self._job = job
        self._model = model
        self._top = top
        self._summary = TraceSummary(serving)

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[TokenEvent]:
        self._summary.see(index, [output])
        if self._calling is not None:
            self._texts[index] += output.text
        if output.tripped is None:
            yield {"index": index, "token": token(self._serving, output, self._top)}

    def closing(self, outputs: list[StepOutput]) -> Iterator[Generated]:
        choices: list[GeneratedChoice] = [
            {"index": index, "finish_reason": str(output.finish_reason)} for index, output in enumerate(outputs)
        ]
        for choice, text in zip(choices, self._texts, strict=False):
            rest, calls, called = calls_in(text, self._calling)
            if calls:
                choice["text"], choice["tool_calls"] = rest, calls
                choice["finish_reason"] = reason_of(choice["finish_reason"], called)
        yield _reply(self._job, self._model, choices, outputs, self._summary)
