"""The shapes of Anthropic's answers, for the type checker and for /docs. Ours beyond Anthropic's: ``steering``."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from ladle.server.replies.reply_types import SteeringReply


class MessageUsage(TypedDict):
    """Token counts. Tokens of the prompt whose state was reused are not among ``input_tokens``."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class TextReply(TypedDict):
    """A text of an answer."""

    type: Literal["text"]
    text: str


class ThinkingReply(TypedDict):
    """The thought in front of an answer. There is nothing that its signature would have to prove: it is empty."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseReply(TypedDict):
    """A call of a function."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageReply(TypedDict):
    """Answer of ``POST /v1/messages``; while it is streamed the reason of its end is null."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ThinkingReply | TextReply | ToolUseReply]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
    steering: NotRequired[SteeringReply]


class MessageStart(TypedDict):
    """The first event: the answer without content."""

    type: Literal["message_start"]
    message: MessageReply


class BlockStart(TypedDict):
    """A block begins, as yet empty."""

    type: Literal["content_block_start"]
    index: int
    content_block: ThinkingReply | TextReply | ToolUseReply


class BlockDelta(TypedDict):
    """What a block grows by: ``text``, ``thinking``, or ``partial_json`` of a call's input."""

    type: Literal["content_block_delta"]
    index: int
    delta: dict[str, str]


class BlockStop(TypedDict):
    """A block is complete."""

    type: Literal["content_block_stop"]
    index: int


class MessageDelta(TypedDict):
    """Why the answer ended, and what it used in all."""

    type: Literal["message_delta"]
    delta: dict[str, str | None]
    usage: MessageUsage
    steering: NotRequired[SteeringReply]


class BareEvent(TypedDict):
    """``ping``, and ``message_stop``, which is the last one."""

    type: Literal["ping", "message_stop"]


class AnthropicErrorBody(TypedDict):
    """What went wrong; the message begins with the field's name where there is one."""

    type: str
    message: str


class AnthropicError(TypedDict):
    """Answer of anything under ``/v1/messages`` that fails."""

    type: Literal["error"]
    error: AnthropicErrorBody
    request_id: str


class TokenCount(TypedDict):
    """Answer of ``POST /v1/messages/count_tokens``."""

    input_tokens: int
