"""The messages of Anthropic's API: turns made of blocks, and what they are to a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag, model_validator

from ladle.merging.exceptions import InputError
from ladle.server.fields.chat_messages import Message, text_of
from ladle.server.http.kinds import OF_KINDS, TEXT_OR_LIST, only_kinds
from ladle.server.http.strict_json import finite_object
from ladle.server.http.strict_model import UNREAD, StrictModel, Unread
from ladle.server.tools.schemas import ToolCall

TOOL_NAME = r"^[a-zA-Z0-9_-]{1,128}$"


class TextBlock(StrictModel):
    """A text."""

    type: Literal["text"]
    text: str
    cache_control: Unread = UNREAD
    citations: Unread = UNREAD
    # The official client's helpers put it there, and send it back.
    parsed_output: Unread = UNREAD


class ToolUseBlock(StrictModel):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: Annotated[str, Field(pattern=TOOL_NAME)]
    input: Annotated[dict[str, Any], AfterValidator(finite_object)] | None = None
    cache_control: Unread = UNREAD
    caller: Unread = UNREAD
    toolset_name: Unread = UNREAD

    def call(self) -> ToolCall:
        """What a conversation holds of this."""
        return ToolCall.of(self.id, self.name, json.dumps(self.input or {}, ensure_ascii=False, allow_nan=False))


_TextOnly = Annotated[Annotated[TextBlock, Tag("<text>")], only_kinds("text")]
Texts = Annotated[Annotated[str, Tag("<text>")] | Annotated[list[_TextOnly], Tag("<list>")], TEXT_OR_LIST]


class ToolResultBlock(StrictModel):
    """What a call gave. That it failed is put in front of the text, which chat templates have no other place for."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool | None = None
    cache_control: Unread = UNREAD
    toolset_name: Unread = UNREAD

    def message(self) -> Message:
        """What a conversation holds of this."""
        text = text_of(self.content) or ""
        if self.is_error and not text.lower().startswith("error"):
            text = f"Error: {text}"
        return Message.result(self.tool_use_id, text)


class ThinkingBlock(StrictModel):
    """What the assistant thought; for chat templates that show it."""

    type: Literal["thinking"]
    thinking: str
    signature: Unread = UNREAD


class RedactedThinkingBlock(StrictModel):
    """What the assistant thought, for nobody else to read."""

    type: Literal["redacted_thinking"]
    data: Unread = UNREAD


_KINDS = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking")
_OF_ROLE = {"user": ("text", "tool_result"), "assistant": ("text", "tool_use", "thinking", "redacted_thinking")}
Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")],
    OF_KINDS,
    only_kinds(*_KINDS),
]
Blocks = Annotated[Annotated[str, Tag("<text>")] | Annotated[list[Block], Tag("<list>")], TEXT_OR_LIST]


class Turn(StrictModel):
    """An entry of ``messages``."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @model_validator(mode="after")
    def _fits_its_role(self) -> Turn:
        if not self.content and not isinstance(self.content, str):
            raise InputError("content", [], "a string, or a list of at least one block")
        allowed = _OF_ROLE.get(self.role, ("text",))
        for index, block in enumerate(self.blocks):
            if block.type not in allowed:
                raise InputError(f"content[{index}].type", block.type, f"{', '.join(allowed)} with role {self.role}")
        return self

    @property
    def blocks(self) -> list[Any]:
        """The content, a string as one block."""
        if isinstance(self.content, str):
            return [TextBlock.model_construct(type="text", text=self.content)]
        return list(self.content)


def conversation(system: str | None, turns: Sequence[Turn]) -> list[Message]:
    """The messages as chat templates take them. Turns of one role that follow each other are one, as in Anthropic's
    API; what calls gave are messages of their own."""
    messages = [] if system is None else [Message.model_construct(role="system", content=system)]
    joined: list[tuple[str, list[Any]]] = []
    for turn in turns:
        if joined and joined[-1][0] == turn.role:
            joined[-1][1].extend(turn.blocks)
        else:
            joined.append((turn.role, turn.blocks))
    for role, blocks in joined:
        messages += [_answer(blocks)] if role == "assistant" else _said(role, blocks)
    return messages


def _answer(blocks: Sequence[Any]) -> Message:
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [block.call() for block in blocks if isinstance(block, ToolUseBlock)]
    return Message.answer(text_of(texts), calls, thoughts)


def _said(role: str, blocks: Sequence[Any]) -> Iterator[Message]:
    texts: list[TextBlock] = []
    for block in [*blocks, None]:
        if isinstance(block, TextBlock):
            texts.append(block)
            continue
        if texts:
            yield Message.model_construct(role=role, content=text_of(texts))
            texts = []
        if block is not None:
            yield block.message()
