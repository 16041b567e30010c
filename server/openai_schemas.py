"""The bodies of OpenAI's two generating endpoints, as far as they are supported, with our extensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ladle.merging.errors import InputError
from ladle.server.known_fields import MESSAGE, ChatFields, CompletionFields, only, with_known
from ladle.server.sampling_fields import MAX_CHOICES, MaxTokens, TopLogprobs
from ladle.server.strict_model import StrictModel
from ladle.server.tool_schemas import ToolCall, ToolFields

if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.sampling_fields import SamplingFields as ChatBase
    from ladle.server.sampling_fields import SamplingFields as CompletionBase
    from ladle.server.strict_model import StrictModel as MessageBase
else:
    ChatBase, CompletionBase = ChatFields, CompletionFields
    MessageBase = with_known(StrictModel, "MessageFields", MESSAGE)

DEFAULT_COMPLETION_TOKENS = 16  # documented by OpenAI for /v1/completions
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


def _prompts(value: Any) -> tuple[str | TokenIds, ...]:
    """``prompt`` in any of its four forms, as several prompts."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError("allowed: a string, a list of strings, a list of token ids or a list of such lists")
    if isinstance(value[0], int):
        return (token_ids(value),)
    if len(value) > MAX_CHOICES:
        raise ValueError(f"allowed: at most {MAX_CHOICES} prompts, not {len(value)}")
    if all(isinstance(prompt, str) for prompt in value):
        return tuple(value)
    if all(isinstance(prompt, list) for prompt in value):
        return tuple(token_ids(prompt) for prompt in value)
    raise ValueError("allowed: prompts of one kind, all strings or all lists of token ids")


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
_PROMPTS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_CHOICES},
        IDS,
        {"type": "array", "items": IDS, "minItems": 1, "maxItems": MAX_CHOICES},
    ]
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


class StreamOptions(StrictModel):
    """``stream_options``."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None

    @field_validator("include_obfuscation")
    @classmethod
    def _unsupported(cls, value: bool | None) -> bool | None:
        only(False)(value)
        return value


def only_with(field: str, needed: str, value: Any = True) -> dict[str, Any]:
    """The rule that ``field``, unless it is 0, null or left out, comes with ``needed`` at ``value``; as a schema."""
    free = {"properties": {field: {"enum": [None, 0]}}}
    return {"anyOf": [free, {"properties": {needed: {"const": value}}, "required": [needed]}]}


class _Streamed(StrictModel):
    """What both endpoints say about streams."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _only_with_stream(self) -> _Streamed:
        if self.stream_options is not None and not self.stream:
            raise InputError("stream_options", self.stream_options.model_dump(), "only together with stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatCompletionRequest(_Streamed, ToolFields, ChatBase):
    """``POST /v1/chat/completions``."""

    model_config = ConfigDict(
        json_schema_extra={"allOf": [only_with("stream_options", "stream"), only_with("top_logprobs", "logprobs")]}
    )
    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatCompletionRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            allowed = f"the value of max_completion_tokens ({self.max_completion_tokens}), or only one of the two"
            raise InputError("max_tokens", self.max_tokens, allowed)
        if self.top_logprobs and not self.logprobs:
            raise InputError("top_logprobs", self.top_logprobs, "only together with logprobs: true")
        return self

    @property
    def alternatives(self) -> int | None:
        """How many top alternatives to report; None without logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Streamed, CompletionBase):
    """``POST /v1/completions``."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                only_with("stream_options", "stream"),
                {
                    "anyOf": [
                        {"properties": {"max_tokens": {"not": {"const": 0}}}},
                        {"properties": {"echo": {"const": True}}, "required": ["echo"]},
                    ]
                },
            ]
        }
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="default 16; 0 only together with echo")
    prompt: Annotated[tuple[str | TokenIds, ...], PlainValidator(_prompts), WithJsonSchema(_PROMPTS_SCHEMA)]
    logprobs: TopLogprobs | None = None
    echo: bool | None = Field(None, description="put the prompt in front of the answer, with its logprobs if asked for")

    @model_validator(mode="after")
    def _few_enough(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise InputError("max_tokens", 0, "numbers greater than or equal to 1, or 0 together with echo: true")
        if self.choices * len(self.prompt) > MAX_CHOICES:
            allowed = f"at most {MAX_CHOICES} choices in all, here {MAX_CHOICES // len(self.prompt)}"
            raise InputError("n", self.n, allowed)
        return self

    @property
    def judges_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are asked for."""
        return bool(self.echo) and self.logprobs is not None
