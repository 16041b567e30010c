"""The bodies of OpenAI's two generating endpoints, as far as they are supported, with our extensions."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ladle.merging.exceptions import InputError
from ladle.server.fields.conversation import Conversation
from ladle.server.fields.known_fields import (
    CHAT,
    COMPLETIONS,
    UNREAD_CHAT,
    UNREAD_COMPLETIONS,
    only,
    with_known,
)
from ladle.server.fields.sampling import MAX_CHOICES, MaxTokens, SamplingFields, TopLogprobs
from ladle.server.fields.schema_rules import only_with
from ladle.server.fields.token_ids import IDS, TokenIds, token_ids
from ladle.server.http.strict_model import StrictModel

if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.fields.sampling import SamplingFields as ChatBase
    from ladle.server.fields.sampling import SamplingFields as CompletionBase
else:
    ChatBase = with_known(SamplingFields, "ChatFields", CHAT, UNREAD_CHAT)
    CompletionBase = with_known(SamplingFields, "CompletionFields", COMPLETIONS, UNREAD_COMPLETIONS)

DEFAULT_COMPLETION_TOKENS = 16  # documented by OpenAI for /v1/completions


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


_PROMPTS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_CHOICES},
        IDS,
        {"type": "array", "items": IDS, "minItems": 1, "maxItems": MAX_CHOICES},
    ]
}


class UsageInStream(Enum):
    """Where a stream has usage: nowhere, in a chunk of its own at the end, or besides in every chunk, so far."""

    NEVER = 0
    AT_THE_END = 1
    ALWAYS = 2

    def __bool__(self) -> bool:
        return self is not UsageInStream.NEVER


class StreamOptions(StrictModel):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="with include_usage: every chunk says it, so far")
    include_obfuscation: bool | None = None

    @property
    def asks(self) -> bool:
        """Whether a stream would be another one for it."""
        return bool(self.include_usage or self.continuous_usage_stats)

    @field_validator("include_obfuscation")
    @classmethod
    def _unsupported(cls, value: bool | None) -> bool | None:
        only(False)(value)
        return value


_OFF = {"enum": [None, False]}
_STREAM_OPTIONS: dict[str, Any] = only_with("stream_options", "stream")
# Options that ask for nothing do so without a stream as well.
_STREAM_OPTIONS["anyOf"].append(
    {
        "properties": {
            "stream_options": {
                "type": "object", "properties": {"include_usage": _OFF, "continuous_usage_stats": _OFF},
            }
        }
    }
)  # fmt: skip


class _Streamed(StrictModel):
    """What both endpoints say about streams."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _only_with_stream(self) -> _Streamed:
        if self.stream_options is not None and self.stream_options.asks and not self.stream:
            given = self.stream_options.model_dump(exclude_none=True)
            raise InputError("stream_options", given, reason="it needs stream: true")
        return self

    @property
    def usage_in_stream(self) -> UsageInStream:
        """Where a stream says what was used."""
        options = self.stream_options
        if options is None or not options.include_usage:
            return UsageInStream.NEVER
        return UsageInStream.ALWAYS if options.continuous_usage_stats else UsageInStream.AT_THE_END


class ChatCompletionRequest(_Streamed, Conversation, ChatBase):
    """``POST /v1/chat/completions``."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_STREAM_OPTIONS, only_with("top_logprobs", "logprobs")]})
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatCompletionRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            allowed = f"the value of max_completion_tokens ({self.max_completion_tokens}), or only one of the two"
            raise InputError("max_tokens", self.max_tokens, allowed)
        if self.top_logprobs and not self.logprobs:
            raise InputError("top_logprobs", self.top_logprobs, reason="it needs logprobs: true")
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().limit

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Streamed, CompletionBase):
    """``POST /v1/completions``."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                _STREAM_OPTIONS,
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
    best_of: int | None = Field(None, description="n, or left out: answers are not chosen from more")
    add_special_tokens: bool | None = Field(
        None, description="whether the tokenizer puts in front what begins a text; default true"
    )

    @model_validator(mode="after")
    def _few_enough(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise InputError("max_tokens", 0, "numbers greater than or equal to 1, or 0 together with echo: true")
        if self.best_of is not None and self.best_of != self.choices:
            raise InputError("best_of", self.best_of, f"{self.choices}, the value of n, or left out")
        if self.choices * len(self.prompt) > MAX_CHOICES:
            allowed = f"at most {MAX_CHOICES} choices in all, here {MAX_CHOICES // len(self.prompt)}"
            raise InputError("n", self.n, allowed)
        return self

    @property
    def judges_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are asked for."""
        return bool(self.echo) and self.logprobs is not None
