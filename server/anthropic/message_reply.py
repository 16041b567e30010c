"""Anthropic's messages as answers: whole, and as the events of a stream."""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from ladle.server.anthropic.message_requests import SPELLING
from ladle.server.api_errors import ApiError
from ladle.server.chat_jobs import ChatJob
from ladle.server.engine.requests.request import StepOutput
from ladle.server.generation import usage
from ladle.server.http.sse import event
from ladle.server.replies.anthropic import (
    BareEvent,
    BlockDelta,
    BlockStart,
    BlockStop,
    MessageDelta,
    MessageReply,
    MessageStart,
    MessageUsage,
    TextReply,
    ThinkingReply,
    ToolUseReply,
)
from ladle.server.replies.choices import Choice
from ladle.server.replies.trace_summary import TraceSummary
from ladle.server.steering import describe
from ladle.server.streaming import EventWriter
from ladle.server.tools.parser import Call, Part, ToolParser

MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | BareEvent
_PING: BareEvent = {"type": "ping"}


def message(chat: ChatJob, choice: Choice) -> MessageReply:
    """The whole answer."""
    summary = TraceSummary(chat.serving)
    summary.see(0, choice.outputs)
    parser = chat.calling.parser() if chat.calling else None
    parts: list[Part] = [choice.text] if parser is None else [*parser.push(choice.text), *parser.finish()]
    content: list[ThinkingReply | TextReply | ToolUseReply] = []
    if choice.reasoning:
        content.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
    for part in parts:
        previous = content[-1] if content else None
        if isinstance(part, Call):
            content.append(_use(part, _input(part.arguments)))
        elif previous is not None and previous["type"] == "text":
            previous["text"] += part
        elif part:
            content.append({"type": "text", "text": part})
    reply = _begun(chat)
    reply["content"] = content
    reply["stop_reason"], reply["stop_sequence"] = _reason(chat, choice.last, parser)
    reply["usage"] = _usage(chat, choice.last)
    reply["steering"] = summary.add_to(describe(chat.job.plan), tokens=True)
    return reply


class MessageStream(EventWriter):
    """Events of a streamed message. It begins with the first token: what it says of the prompt is known then."""

    named = True
    end = b""
    alive = event(_PING, "ping")

    def __init__(self, chat: ChatJob) -> None:
        self._chat = chat
        self._parser = chat.calling.parser() if chat.calling else None
        self._summary = TraceSummary(chat.serving)
        self._begun = False
        self._blocks = 0
        self._open: str | None = None  # the kind of the block that grows

    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[MessageEvent]:
        self._summary.see(index, [output])
        if not self._begun:
            self._begun = True
            reply = _begun(self._chat)
            reply["usage"] = _usage(self._chat, output)
            yield {"type": "message_start", "message": reply}
            yield _PING
        if output.reasoning:
            yield from self._grow("thinking", {"type": "thinking", "thinking": "", "signature": ""}, output.reasoning)
        for part in self._parts(output):
            yield from self._call(part) if isinstance(part, Call) else self._text(part)

    def closing(self, outputs: list[StepOutput]) -> Iterator[MessageEvent]:
        yield from self._close()
        reason, sequence = _reason(self._chat, outputs[0], self._parser)
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": _usage(self._chat, outputs[0]),
            "steering": self._summary.add_to(describe(self._chat.job.plan), tokens=True),
        }
        yield {"type": "message_stop"}

    def failed(self, error: ApiError) -> Iterator[Any]:
        yield from super().failed(SPELLING.error(error))

    def _parts(self, output: StepOutput) -> list[Part]:
        if self._parser is None:
            return [output.text] if output.text else []
        parts = self._parser.push(output.text)
        return parts if output.finish_reason is None else [*parts, *self._parser.finish()]

    def _text(self, text: str) -> Iterator[MessageEvent]:
        yield from self._grow("text", {"type": "text", "text": ""}, text)

    def _grow(self, kind: str, empty: ThinkingReply | TextReply, text: str) -> Iterator[MessageEvent]:
        if self._open != kind:
            yield from self._close()
            self._open = kind
            yield {"type": "content_block_start", "index": self._blocks, "content_block": empty}
        delta = {"type": f"{kind}_delta", kind: text}
        yield {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _call(self, call: Call) -> Iterator[MessageEvent]:
        yield from self._close()
        yield {"type": "content_block_start", "index": self._blocks, "content_block": _use(call, {})}
        for piece in ("", call.arguments):
            delta = {"type": "input_json_delta", "partial_json": piece}
            yield {"type": "content_block_delta", "index": self._blocks, "delta": delta}
        yield {"type": "content_block_stop", "index": self._blocks}
        self._blocks += 1

    def _close(self) -> Iterator[MessageEvent]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._blocks}
            self._blocks += 1


def _begun(chat: ChatJob) -> MessageReply:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": chat.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }


def _usage(chat: ChatJob, output: StepOutput) -> MessageUsage:
    counts = usage(chat.job, [output])
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": counts["completion_tokens"],
    }


def _reason(chat: ChatJob, last: StepOutput, parser: ToolParser | None) -> tuple[str, str | None]:
    """``stop_reason`` and ``stop_sequence``. What ends an answer after its only call is no sequence of the client's."""
    if last.finish_reason == "length":
        return "max_tokens", None
    if last.finish_reason == "content_filter":
        return "refusal", None
    own = chat.calling.stop if chat.calling else ()
    if last.stop is not None and last.stop not in own:
        return "stop_sequence", last.stop
    return ("tool_use" if parser is not None and parser.called else "end_turn"), None


def _use(call: Call, given: dict[str, Any]) -> ToolUseReply:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": call.name, "input": given}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call; as much of them as came, where the answer was cut."""
    try:
        document = _bounded(from_json(arguments, allow_partial="trailing-strings"))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _bounded(value: Any) -> Any:
    """``value`` with the greatest float in the place of infinite ones, which JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)
    if isinstance(value, dict):
        return {key: _bounded(inner) for key, inner in value.items()}
    return [_bounded(inner) for inner in value] if isinstance(value, list) else value
