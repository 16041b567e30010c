"""Messages of a chat, and prompts as token ids: what the bodies of several endpoints share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from ladle.merging.errors import InputError
from ladle.server.fields.known_fields import MESSAGE, with_known
from ladle.server.http.strict_model import StrictModel
from ladle.server.tools.schemas import ToolCall

if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.http.strict_model import StrictModel as MessageBase
else:
    MessageBase = with_known(StrictModel, "MessageFields", MESSAGE)

TokenIds = tuple[int, ...]


def _text(value: Any) -> Any:
    """A message's content as one string; text parts are joined by newlines."""
    if isinstance(value, str):
        return value
    allowed = 'allowed: a string or a list of {"type": "text", "text": "..."}'
    if not isinstance(value, list) or not value:
        raise ValueError(allowed)
    for index, part in enumerate(value):
        if not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text":
            kind = part.get("type") if isinstance(part, dict) else None
            raise ValueError(f"part {index} is of type {kind!r}; {allowed}")
        if not isinstance(part["text"], str):
            raise ValueError(f"part {index} holds no text; {allowed}")
    return "\n".join(part["text"] for part in value)


def _content(value: Any) -> Any:
    return None if value is None else _text(value)


def token_ids(value: Any) -> TokenIds:
    """A non-empty list of token ids; whether they are in the vocabulary is for the model to say."""
    if not value or any(type(token) is not int or not 0 <= token < 1 << 31 for token in value):
        raise ValueError("allowed: a non-empty list of token ids, whole numbers >= 0")
    return tuple(value)


_CONTENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "null"},
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "additionalProperties": False,
            },
        },
    ]
}


IDS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 31},
    "minItems": 1,
}


def _role(value: Any) -> Any:
    return "system" if value == "developer" else value


class Message(MessageBase):
    """One message of a chat. ``developer`` is OpenAI's newer name for ``system``."""

    role: Annotated[Literal["system", "user", "assistant", "tool"], BeforeValidator(_role)]
    content: Annotated[str | None, BeforeValidator(_content), WithJsonSchema(_CONTENT_SCHEMA)] = Field(
        None, validate_default=True
    )
    tool_calls: list[ToolCall] | None = Field(None, description="what the assistant called, in its own messages")
    tool_call_id: str | None = Field(None, description="which call a message of role tool answers")
    # The official client's helpers put it beside the content that it was read from, and send it back.
    parsed: Any = Field(None, description="not looked at")

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise InputError("tool_calls", self.role, "only in messages of the assistant")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise InputError("tool_call_id", self.tool_call_id, "the id of a call, with role tool and no other")
        if self.content is None and not self.tool_calls:
            raise InputError("content", None, "a string, or a list of text parts")
        return self

    @property
    def about_tools(self) -> str | None:
        """The field that only chat templates with tools understand; None where there is none."""
        return "role" if self.role == "tool" else "tool_calls" if self.tool_calls else None

    def turn(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            turn["tool_calls"] = [call.turn() for call in self.tool_calls]
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        return turn


def only_with(field: str, needed: str, value: Any = True) -> dict[str, Any]:
    """The rule that ``field``, unless it is 0, null or left out, comes with ``needed`` at ``value``; as a schema."""
    free = {"properties": {field: {"enum": [None, 0]}}}
    return {"anyOf": [free, {"properties": {needed: {"const": value}}, "required": [needed]}]}
