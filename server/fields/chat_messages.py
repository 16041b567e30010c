"""The messages of a chat, and what a request says about how the chat template writes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from transformers import PreTrainedTokenizerBase

from ladle.merging.exceptions import InputError
from ladle.nulls import UNSET, without_unset
from ladle.server.fields.known_fields import MESSAGE, UNREAD_MESSAGE, UNREAD_PART, with_known
from ladle.server.http.strict_json import finite_object
from ladle.server.http.strict_model import StrictModel
from ladle.server.tools.custom_tools import AnyToolCall, CustomToolCall
from ladle.server.tools.schemas import ToolCall

if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.http.strict_model import StrictModel as MessageBase
else:
    MessageBase = with_known(StrictModel, "MessageFields", MESSAGE, UNREAD_MESSAGE)

_PARTS = 'allowed: a string or a list of {"type": "text", "text": "..."}'
_UNREAD = frozenset(UNREAD_PART)
# An assistant of another provider's may have refused; the template shows what it said.
_PART_KINDS = ("text", "refusal")
_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    "conversations",
    "messages",
}


def _text(value: Any) -> Any:
    """A message's content as one string; text parts are joined by newlines. None for none, an empty list included."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(_PARTS)
    return "\n".join(_text_of_part(index, part) for index, part in enumerate(value)) if value else None


def _text_of_part(index: int, part: Any) -> str:
    if not isinstance(part, dict):
        raise ValueError(f"part {index} is no object; {_PARTS}")
    kind = part.get("type")
    if kind not in _PART_KINDS:
        raise ValueError(f"part {index} is of type {kind!r}; {_PARTS}")
    if not isinstance(part.get(kind), str):
        raise ValueError(f"part {index} holds no text; {_PARTS}")
    given = without_unset(part)
    unknown = next((key for key in given if key not in ("type", kind) and key not in _UNREAD), None)
    if unknown is not None:
        raise ValueError(f"part {index} has an unknown or unsupported field {unknown[:100]!r}; {_PARTS}")
    text: str = part[kind]
    return text


def _part_schema(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", kind],
        "properties": {"type": {"const": kind}, kind: {"type": "string"}, **{name: {} for name in UNREAD_PART}},
        "additionalProperties": UNSET,
    }


_CONTENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "null"},
        {"type": "string"},
        {"type": "array", "items": {"anyOf": [_part_schema(kind) for kind in _PART_KINDS]}},
    ]
}


def _role(value: Any) -> Any:
    return "system" if value == "developer" else value


class Message(MessageBase):
    """One message of a chat. ``developer`` is OpenAI's newer name for ``system``."""

    role: Annotated[Literal["system", "user", "assistant", "tool"], BeforeValidator(_role)]
    content: Annotated[str | None, BeforeValidator(_text), WithJsonSchema(_CONTENT_SCHEMA)] = None
    name: str | None = Field(None, description="who speaks, or which tool; for chat templates that show it")
    reasoning_content: str | None = Field(None, description="what the assistant thought; for templates that show it")
    reasoning: str | None = Field(None, description="another name of reasoning_content")
    tool_calls: list[AnyToolCall] | None = Field(None, description="what the assistant called, in its own messages")
    tool_call_id: str | None = Field(None, description="which call a message of role tool answers")

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, value: Any) -> Any:
        """Take a refusal for the content where an assistant said nothing else. An answer that was cut before it
        said anything has no content; it comes back as it was given out. A call that gave nothing gave an empty text."""
        if not isinstance(value, dict) or value.get("role") not in ("assistant", "tool"):
            return value
        if value["role"] == "tool":
            return value if value.get("content") is not None else {**value, "content": ""}
        refusal = value.get("refusal") or ""
        silent = value.get("content") is None and not value.get("tool_calls")
        says = isinstance(refusal, str) and (refusal or "content" in value)
        return {**value, "content": refusal} if silent and says else value

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise InputError("tool_calls", self.role, reason="only messages of the assistant have them")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise InputError("tool_call_id", self.tool_call_id, "the id of a call, with role tool and no other")
        if self.content is None and not self.tool_calls:
            raise InputError("content", None, "a string, or a list of text parts")
        return self

    @classmethod
    def answer(
        cls, text: str | None, calls: Sequence[ToolCall | CustomToolCall] = (), thoughts: Sequence[str] = ()
    ) -> Message:
        """What an assistant said; nothing is checked."""
        thought = "\n".join(thoughts) if thoughts else None
        return cls.model_construct(
            role="assistant", content=text, tool_calls=list(calls) or None, reasoning_content=thought
        )

    @classmethod
    def result(cls, call: str, text: str) -> Message:
        """What the call with the id ``call`` gave; nothing is checked."""
        return cls.model_construct(role="tool", content=text, tool_call_id=call)

    @property
    def about_tools(self) -> str | None:
        """The field that only chat templates with tools understand; None where there is none."""
        return "role" if self.role == "tool" else "tool_calls" if self.tool_calls else None

    def turn(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            turn["tool_calls"] = [call.turn() for call in self.tool_calls]
        thought = self.reasoning_content if self.reasoning_content is not None else self.reasoning
        others = {"tool_call_id": self.tool_call_id, "name": self.name, "reasoning_content": thought}
        return turn | {key: value for key, value in others.items() if value is not None}


class _Part(Protocol):
    @property
    def text(self) -> str: ...


def text_of(content: str | Sequence[_Part] | None) -> str | None:
    """A text, or the texts of parts, joined by newlines; None for none."""
    if content is None or isinstance(content, str):
        return content
    return "\n".join(part.text for part in content) if content else None


Messages = Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]


@dataclass(frozen=True)
class ChatForm:
    """How a chat template writes a conversation.

    Attributes:
        opens_answer: whether what begins an answer of the assistant comes last.
        continues: whether the last message is left open, so that the answer goes on with it.
        variables: what the template gets besides messages and tools.
        trusts_texts: whether the names of special tokens in texts are these tokens.
    """

    opens_answer: bool = True
    continues: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    trusts_texts: bool = False


def _variables(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in _RESERVED:
            reason = "it is an argument of the renderer, not of the template"
            raise InputError(f"chat_template_kwargs.{name}", value[name], reason=reason)
    return finite_object(value)


TemplateVariables = Annotated[dict[str, Any], AfterValidator(_variables)]


class ChatTemplateFields(StrictModel):
    """What endpoints with messages say of their rendering, as vLLM does."""

    add_generation_prompt: bool | None = Field(
        None, description="whether the prompt ends with what begins an answer; default: unless a message is continued"
    )
    continue_final_message: bool | None = Field(
        None, description="leave the last message open, and go on with it; the answer is what comes after it"
    )
    chat_template_kwargs: TemplateVariables | None = Field(
        None, description="further variables for the base's chat template, such as enable_thinking"
    )

    @model_validator(mode="after")
    def _open_or_closed(self) -> ChatTemplateFields:
        if self.continue_final_message and self.add_generation_prompt:
            reason = "what begins an answer cannot follow a message that is continued (continue_final_message)"
            raise InputError("add_generation_prompt", True, reason=reason)
        return self

    def chat_form(self, trusts_texts: bool) -> ChatForm:
        """The form that is asked for; ``trusts_texts`` is for the operator to say."""
        continues = bool(self.continue_final_message)
        opens = not continues if self.add_generation_prompt is None else self.add_generation_prompt
        return ChatForm(opens, continues, self.chat_template_kwargs or {}, trusts_texts)

    @property
    def template_field(self) -> str | None:
        """The first of these fields that asks for something; None where none does."""
        form = self.chat_form(False)
        if form.continues:
            return "continue_final_message"
        return "add_generation_prompt" if not form.opens_answer else "chat_template_kwargs" if form.variables else None
