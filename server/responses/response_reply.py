"""Answers of the Responses API: whole, and as the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ladle.server.api_errors import ApiError
from ladle.server.chat_jobs import ChatJob
from ladle.server.engine.requests.request import StepOutput
from ladle.server.fields.chat_messages import Message
from ladle.server.generation import usage
from ladle.server.http.strict_json import strict_json
from ladle.server.openai.chat_reply import chat_logprobs
from ladle.server.replies.choices import Choice
from ladle.server.replies.reply_types import TokenLogprob
from ladle.server.replies.responses import (
    CustomCallReply,
    FunctionCallReply,
    MessageItemReply,
    OutputItem,
    OutputTextReply,
    ReasoningReply,
    ReasoningTextReply,
    ResponseEvent,
    ResponseReply,
    ResponseUsage,
)
from ladle.server.replies.trace_summary import TraceSummary
from ladle.server.responses.items import NamespacedCall
from ladle.server.responses.response_requests import SPELLING, ResponsesRequest
from ladle.server.responses.tools import namespaces
from ladle.server.steering import describe
from ladle.server.streaming import EventWriter
from ladle.server.tools.custom_tools import CustomToolCall
from ladle.server.tools.parser import Call, Part
from ladle.server.tools.schemas import ToolCall
from ladle.server.tools.searches import WebSearchTool

_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer is incomplete, by the reason of its end."""


class Response:
    """One answer, as what it says of itself changes."""

    def __init__(self, chat: ChatJob, body: ResponsesRequest) -> None:
        self._chat = chat
        self._body = body
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._summary = TraceSummary(chat.serving)

    def see(self, outputs: Sequence[StepOutput]) -> None:
        """Take in tokens, of which the answer says how they were steered."""
        self._summary.see(0, outputs)

    def logprobs(self, outputs: Sequence[StepOutput]) -> list[TokenLogprob]:
        """The logprobs of tokens, where they are asked for."""
        return chat_logprobs(self._chat.serving.tokens, outputs)["content"] if self._body.logprobs else []

    def begun(self) -> ResponseReply:
        """Before it has said anything."""
        return self._reply("in_progress", [])

    def ended(self, items: Sequence[OutputItem], last: StepOutput) -> ResponseReply:
        """Once it is complete, or cut."""
        cut = _CUT.get(str(last.finish_reason))
        reply = self._reply("incomplete" if cut else "completed", items)
        reply["incomplete_details"] = {"reason": cut} if cut else None
        reply["completed_at"] = None if cut else int(time.time())
        reply["usage"] = self._usage(last)
        reply["steering"] = self._summary.add_to(describe(self._chat.job.plan), tokens=True)
        return reply

    def failed(self, items: Sequence[OutputItem], error: ApiError) -> ResponseReply:
        """When it cannot go on."""
        spelt = SPELLING.error(error)
        reply = self._reply("failed", items)
        codes = {429: "rate_limit_exceeded"}
        code = codes.get(spelt.status_code, "server_error" if spelt.status_code >= 500 else "invalid_prompt")
        reply["error"] = {"code": code, "message": spelt.message}
        return reply

    def _usage(self, last: StepOutput) -> ResponseUsage:
        counts = usage(self._chat.job, [last])
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": last.reasoning_tokens},
            "total_tokens": counts["total_tokens"],
        }

    def _reply(self, status: str, items: Sequence[OutputItem]) -> ResponseReply:
        body = self._body
        drawn = self._chat.job.requests[0].sampling
        form = None if body.text is None else body.text.format
        said = {"type": "text"} if form is None else form.echoed()
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.repeated,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._chat.model,
            "output": list(items),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
            "store": body.keeps,
            "temperature": drawn.temperature if body.temperature is None else body.temperature,
            "text": {"format": said, "verbosity": "medium"},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": [tool.echoed() for tool in body.tools or () if not isinstance(tool, WebSearchTool)],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": drawn.top_p if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def response(chat: ChatJob, body: ResponsesRequest, choice: Choice) -> ResponseReply:
    """The whole answer."""
    reply = Response(chat, body)
    reply.see(choice.outputs)
    parser = chat.calling.parser() if chat.calling else None
    parts: list[Part] = [choice.text] if parser is None else [*parser.push(choice.text), *parser.finish()]
    items: list[OutputItem] = [_reasoning(choice.reasoning)] if choice.reasoning else []
    named = namespaces(body.tools or ())
    text = ""
    for part in [*parts, None]:
        if isinstance(part, str):
            text += part
            continue
        if text or (part is None and not _said(items)):
            logprobs = [] if any(item["type"] == "message" for item in items) else reply.logprobs(choice.outputs)
            items.append(_message(text, logprobs, "completed"))
            text = ""
        if part is not None:
            items.append(_call(part, named))
    if choice.finish_reason in _CUT and items[-1]["type"] == "message":
        items[-1]["status"] = "incomplete"
    return reply.ended(items, choice.last)


def answer_of(reply: ResponseReply) -> list[Message]:
    """What the answer is to a conversation that goes on from it."""
    texts = [part["text"] for item in reply["output"] if item["type"] == "message" for part in item["content"]]
    calls: list[ToolCall | CustomToolCall] = []
    for item in reply["output"]:
        if item["type"] == "function_call" and item["status"] == "completed":
            call = ToolCall.of(item["call_id"], item["name"], item["arguments"])
            calls.append(NamespacedCall.within(item.get("namespace"), call))
        elif item["type"] == "custom_tool_call" and item["status"] == "completed":
            calls.append(CustomToolCall.of(item["call_id"], item["name"], item["input"]))
    thoughts = [part["text"] for item in reply["output"] if item["type"] == "reasoning" for part in item["content"]]
    return [Message.answer("\n".join(texts), calls, thoughts)]


class ResponseStream(EventWriter):
    """Events of a streamed response. ``keep`` gets it when it has ended."""

    named = True
    end = b""

    def __init__(self, chat: ChatJob, body: ResponsesRequest, keep: Callable[[ResponseReply], None]) -> None:
        self._response = Response(chat, body)
        self._parser = chat.calling.parser() if chat.calling else None
        self._keep = keep
        self._named = namespaces(body.tools or ())
        self._number = 0
        self._items: list[OutputItem] = []
        self._open: MessageItemReply | None = None
        self._thought: ReasoningReply | None = None
        self._waiting: list[TokenLogprob] = []

    def opening(self) -> Iterator[ResponseEvent]:
        for name in ("created", "in_progress"):
            yield self._event(name, response=self._response.begun())

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[ResponseEvent]:
        self._response.see([output])
        self._waiting += self._response.logprobs([output])
        if output.reasoning:
            yield from self._thinks(output.reasoning)
        elif output.reasoning is None:
            yield from self._conclude()
        for part in self._parts(output):
            yield from self._call(part) if isinstance(part, Call) else self._text(part)

    def closing(self, outputs: list[StepOutput]) -> Iterator[ResponseEvent]:
        cut = outputs[0].finish_reason in _CUT
        yield from self._conclude()
        if not _said(self._items) and self._open is None:
            yield from self._text("")
        yield from self._close("incomplete" if cut else "completed")
        reply = self._response.ended(self._items, outputs[0])
        self._keep(reply)
        yield self._event(reply["status"], response=reply)

    def failed(self, error: ApiError) -> Iterator[ResponseEvent]:
        items = [*self._items, *(item for item in (self._thought, self._open) if item is not None)]
        yield self._event("failed", response=self._response.failed(items, error))

    def _parts(self, output: StepOutput) -> list[Part]:
        if self._parser is None:
            return [output.text] if output.text else []
        parts = self._parser.push(output.text)
        if output.finish_reason is None:
            return parts
        return [*parts, *self._parser.finish()]

    def _event(self, kind: str, /, **fields: Any) -> ResponseEvent:
        event: ResponseEvent = {"type": f"response.{kind}", "sequence_number": self._number, **fields}  # type: ignore[typeddict-item]
        self._number += 1
        return event

    def _thinks(self, text: str) -> Iterator[ResponseEvent]:
        place = {"output_index": len(self._items), "content_index": 0}
        if self._thought is None:
            self._thought = _reasoning("")
            empty: ReasoningReply = {**self._thought, "content": []}
            yield self._event("output_item.added", output_index=len(self._items), item=empty)
            part = {"type": "reasoning_text", "text": ""}
            yield self._event("content_part.added", item_id=self._thought["id"], **place, part=part)
        self._thought["content"][0]["text"] += text
        yield self._event("reasoning_text.delta", item_id=self._thought["id"], **place, delta=text)

    def _conclude(self) -> Iterator[ResponseEvent]:
        """The thought is complete, if there is one."""
        if self._thought is None:
            return
        item, self._thought = self._thought, None
        part = item["content"][0]
        place = {"item_id": item["id"], "output_index": len(self._items), "content_index": 0}
        yield self._event("reasoning_text.done", **place, text=part["text"])
        yield self._event("content_part.done", **place, part=part)
        yield self._event("output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)

    def _text(self, text: str) -> Iterator[ResponseEvent]:
        place = {"output_index": len(self._items), "content_index": 0}
        if self._open is None:
            self._open = _message("", [], "in_progress")
            part = self._open["content"][0]
            empty: MessageItemReply = {**self._open, "content": []}
            yield self._event("output_item.added", output_index=len(self._items), item=empty)
            yield self._event("content_part.added", item_id=self._open["id"], **place, part=_copy(part))
        part = self._open["content"][0]
        if text:
            part["text"] += text
            part["logprobs"] += self._waiting
            delta = {"delta": text, "logprobs": self._waiting}
            self._waiting = []
            yield self._event("output_text.delta", item_id=self._open["id"], **place, **delta)

    def _call(self, call: Call) -> Iterator[ResponseEvent]:
        yield from self._close("completed")
        self._waiting = []
        item = _call(call, self._named)
        place = {"item_id": item["id"], "output_index": len(self._items)}
        begun: FunctionCallReply | CustomCallReply
        if item["type"] == "custom_tool_call":
            begun = {**item, "input": "", "status": "in_progress"}
            kind, text, done = "custom_tool_call_input", item["input"], {"input": item["input"]}
        else:
            begun = {**item, "arguments": "", "status": "in_progress"}
            kind, text = "function_call_arguments", call.arguments
            done = {"name": item["name"], "arguments": call.arguments}
        yield self._event("output_item.added", output_index=len(self._items), item=begun)
        yield self._event(f"{kind}.delta", **place, delta=text)
        yield self._event(f"{kind}.done", **place, **done)
        yield self._event("output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)

    def _close(self, status: str) -> Iterator[ResponseEvent]:
        if self._open is None:
            return
        item, self._open = self._open, None
        item["status"] = status
        part = item["content"][0]
        part["logprobs"] += self._waiting
        place = {"item_id": item["id"], "output_index": len(self._items), "content_index": 0}
        yield self._event("output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
        yield self._event("content_part.done", **place, part=part)
        yield self._event("output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)


def _message(text: str, logprobs: list[TokenLogprob], status: str) -> MessageItemReply:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}],
    }


def _reasoning(text: str) -> ReasoningReply:
    thought: ReasoningTextReply = {"type": "reasoning_text", "text": text}
    return {"id": f"rs_{uuid.uuid4().hex}", "type": "reasoning", "summary": [], "content": [thought]}


def _said(items: Sequence[OutputItem]) -> bool:
    """Whether there is more than a thought."""
    return any(item["type"] != "reasoning" for item in items)


def _copy(part: OutputTextReply) -> OutputTextReply:
    """A copy of ``part``, which grows after it was sent."""
    return {**part, "logprobs": list(part["logprobs"])}


def _call(call: Call, named: Mapping[str, tuple[str, str]]) -> FunctionCallReply | CustomCallReply:
    """The item of ``call``; ``named``: the namespaces and names of functions that belong to one."""
    try:
        strict_json(call.arguments)
    except ValueError:  # it was cut
        status = "incomplete"
    else:
        status = "completed"
    if call.custom:
        return {
            "id": f"ctc_{uuid.uuid4().hex}",
            "type": "custom_tool_call",
            "call_id": f"call_{uuid.uuid4().hex[:24]}",
            "name": call.name,
            "input": call.input,
            "status": status,
        }
    item: FunctionCallReply = {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "call_id": f"call_{uuid.uuid4().hex[:24]}",
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }
    if call.name in named:
        item["namespace"], item["name"] = named[call.name]
    return item
