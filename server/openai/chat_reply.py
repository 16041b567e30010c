"""OpenAI's chat completions as answers: whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from ladle.server.engine.requests.request import StepOutput
from ladle.server.fields.tool_calling import ToolCalling
from ladle.server.generation import Job, usage, usage_so_far
from ladle.server.openai.completion_requests import UsageInStream
from ladle.server.prompt_report import prompt_report
from ladle.server.ranked_choices import best_first, number
from ladle.server.replies.calls import ToolCallReply
from ladle.server.replies.choices import Choice
from ladle.server.replies.reply_types import (
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    SteeringReply,
    TokenLogprob,
    TopLogprob,
)
from ladle.server.replies.trace_summary import TraceSummary
from ladle.server.serving import Serving
from ladle.server.steering import describe
from ladle.server.streaming import EventWriter
from ladle.server.text.token_text import TokenText, finite
from ladle.server.tools.parser import Call


def chat_completion(
    serving: Serving,
    job: Job,
    model: str,
    choices: Sequence[Choice],
    logprobs: bool,
    calling: ToolCalling | None = None,
    prompt_logprobs: int | None = None,
) -> ChatCompletion:
    """The whole answer; with ``calling`` the calls in it are apart from its text. ``prompt_logprobs``: alternatives at
    every token of the prompt; None reports none."""
    summary = TraceSummary(serving)
    shown = best_first(job, choices)
    for index, choice in enumerate(shown):
        summary.see(index, choice.outputs)
    messages = [_message(choice, calling, job.thinks) for choice in shown]
    reply: ChatCompletion = {
        "id": f"chatcmpl-{job.id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": serving.fingerprint,
        "choices": [
            {
                "index": index,
                "message": message,
                "logprobs": chat_logprobs(serving.tokens, choice.outputs) if logprobs else None,
                "finish_reason": reason_of(choice.finish_reason, called),
            }
            for index, (choice, (message, called)) in enumerate(zip(shown, messages, strict=True))
        ],
        "usage": usage(job, [choice.last for choice in choices]),
        "steering": summary.add_to(describe(job.plan), tokens=True),
    }
    for reply_of_choice, choice in zip(reply["choices"], shown, strict=True):
        if choice.last.score is not None:
            reply_of_choice["score"] = number(choice.last.score.value)
    if prompt_logprobs is not None:
        reply["prompt_logprobs"] = prompt_report(serving.tokens, job.prompts[0].ids, choices[0], prompt_logprobs)
    return reply


def _message(choice: Choice, calling: ToolCalling | None, thinks: bool) -> tuple[ChatMessage, bool]:
    """What a choice says, and whether it calls."""
    message: ChatMessage = {"role": "assistant", "content": choice.text, "refusal": None}
    if thinks:
        message["reasoning_content"] = choice.reasoning
    rest, calls, called = calls_in(choice.text, calling)
    if calls or (calling is not None and calling.required):
        message["content"] = rest or None
    if calls:
        message["tool_calls"] = calls
    return message, called


def calls_in(text: str, calling: ToolCalling | None) -> tuple[str, list[ToolCallReply], bool]:
    """What of an answer is no call, its calls, none where there are no functions, and whether the last one is
    complete."""
    if calling is None:
        return text, [], False
    parser = calling.parser()
    parts = [*parser.push(text), *parser.finish()]
    calls = [_call(part) for part in parts if isinstance(part, Call)]
    rest = "".join(part for part in parts if isinstance(part, str))
    return (rest, calls, parser.called) if calls or calling.required else (text, [], False)


def _call(call: Call) -> ToolCallReply:
    name = f"call_{uuid.uuid4().hex[:24]}"
    if call.custom:
        return {"id": name, "type": "custom", "custom": {"name": call.name, "input": call.input}}
    return {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def reason_of(reason: str, called: bool) -> str:
    """Why an answer ended, as clients of OpenAI's API look for calls; a call that a stop string cut is none to make."""
    return "tool_calls" if called and reason == "stop" else reason


def chat_logprobs(tokens: TokenText, outputs: Sequence[StepOutput]) -> ChatLogprobs:
    """``logprobs`` of a choice or of a chunk: of what is content, and so of no thought."""
    content: list[TokenLogprob] = [
        {
            **_top(tokens, output.token, output.logprob),
            "top_logprobs": [_top(tokens, token, logprob) for token, logprob in output.top],
        }
        for output in outputs
        if output.token >= 0 and output.reasoning is None and not ends_text(tokens, output)
    ]
    return {"content": content, "refusal": None}


def ends_text(tokens: TokenText, output: StepOutput) -> bool:
    """Whether an output is the end-of-text token, which is no content."""
    return output.finish_reason == "stop" and tokens.is_special(output.token)


def _top(tokens: TokenText, token: int, logprob: float) -> TopLogprob:
    return {"token": tokens.text(token), "bytes": tokens.utf8(token), "logprob": finite(logprob)}


class ChatStream(EventWriter):
    """Events of a streamed chat completion: a role chunk a choice, deltas, a finish chunk a choice, the usage chunk."""

    def __init__(
        self,
        serving: Serving,
        job: Job,
        model: str,
        logprobs: bool,
        usage_shown: UsageInStream,
        calling: ToolCalling | None = None,
    ) -> None:
        self._parsers = [calling.parser() for _ in job.requests] if calling is not None else None
        self._serving = serving
        self._job = job
        self._logprobs = logprobs
        self._usage = usage_shown
        self._seen: dict[int, StepOutput] = {}
        self._model = model
        self._id = f"chatcmpl-{job.id}"
        self._created = int(time.time())
        self._summary = TraceSummary(serving)

    def opening(self) -> Iterator[ChatChunk]:
        for index in range(len(self._job.requests)):
            # An answer that may turn out to be calls has no content until it has some.
            yield self._chunk(index, {"role": "assistant", "content": "" if self._parsers is None else None})

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[ChatChunk]:
        self._summary.see(index, [output])
        self._seen[index] = output
        logprobs = chat_logprobs(self._serving.tokens, [output]) if self._logprobs else None
        deltas = list(self._deltas(index, output))
        if logprobs and logprobs["content"] and not deltas:
            deltas.append({"content": ""} if self._parsers is None else {})
        for place, delta in enumerate(deltas):
            yield self._chunk(index, delta, None if place else logprobs)
        if output.finish_reason is not None:
            called = self._parsers is not None and self._parsers[index].called
            chunk = self._chunk(index, {}, None, reason_of(output.finish_reason, called))
            if last and not self._usage:
                chunk["steering"] = self._steering()
            yield chunk

    def _deltas(self, index: int, output: StepOutput) -> Iterator[ChatDelta]:
        """What ``output`` adds to choice ``index``."""
        if output.reasoning:
            yield {"reasoning_content": output.reasoning}
        if self._parsers is None:
            if output.text:
                yield {"content": output.text}
            return
        parser = self._parsers[index]
        calls = parser.calls
        parts = parser.push(output.text)
        if output.finish_reason is not None:
            parts += parser.finish()
        for part in parts:
            if isinstance(part, str):
                yield {"content": part}
            else:
                yield {"tool_calls": [{"index": calls, **_call(part)}]}
                calls += 1

    def closing(self, outputs: list[StepOutput]) -> Iterator[ChatChunk]:
        if self._usage:
            chunk = self._envelope([])
            chunk["usage"] = usage(self._job, outputs)
            chunk["steering"] = self._steering()
            yield chunk

    def _steering(self) -> SteeringReply:
        return self._summary.add_to(describe(self._job.plan), tokens=True)

    def _chunk(
        self, index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None, reason: str | None = None
    ) -> ChatChunk:
        choice: ChatChunkChoice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._envelope([choice])

    def _envelope(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk: ChatChunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._serving.fingerprint,
            "choices": choices,
        }
        if self._usage:
            chunk["usage"] = usage_so_far(self._job, self._seen) if self._usage is UsageInStream.ALWAYS else None
        return chunk
