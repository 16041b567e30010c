"""The shapes of the Responses API's answers, for the type checker and for /docs. Ours beyond OpenAI's:
``steering``."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from ladle.server.replies.reply_types import SteeringReply, TokenLogprob


class InputDetails(TypedDict):
    """How many of the prompt tokens had their state reused."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    """How many of the answer's tokens stand between the tags of a thought, where thoughts are told apart."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class OutputTextReply(TypedDict):
    """A text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class MessageItemReply(TypedDict):
    """A message of an answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: str
    content: list[OutputTextReply]


class FunctionCallReply(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: NotRequired[str]
    arguments: str
    status: str


class CustomCallReply(TypedDict):
    """A call of a custom tool."""

    id: str
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str
    status: str


class ReasoningTextReply(TypedDict):
    """A thought."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningReply(TypedDict):
    """What the assistant thought."""

    id: str
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[ReasoningTextReply]


OutputItem = MessageItemReply | FunctionCallReply | CustomCallReply | ReasoningReply


class ResponseFailure(TypedDict):
    """Why an answer failed after it had begun."""

    code: str
    message: str


class ResponseReply(TypedDict):
    """Answer of ``POST /v1/responses``, and what its first and last events hold."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: str
    background: bool
    error: ResponseFailure | None
    incomplete_details: dict[str, str] | None
    instructions: str | list[dict[str, Any]] | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, str | None]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    steering: NotRequired[SteeringReply]


class ResponseEvent(TypedDict):
    """One event of a streamed response; which of the fields it has follows from its type."""

    type: str
    sequence_number: int
    response: NotRequired[ResponseReply]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    item_id: NotRequired[str]
    item: NotRequired[OutputItem]
    part: NotRequired[OutputTextReply | ReasoningTextReply]
    delta: NotRequired[str]
    text: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]
    input: NotRequired[str]
    logprobs: NotRequired[list[TokenLogprob]]


class InputTextReply(TypedDict):
    """A text of a question."""

    type: Literal["input_text"]
    text: str


class InputMessageReply(TypedDict):
    """A message of a conversation."""

    id: str
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    status: str
    content: list[InputTextReply | OutputTextReply]


class FunctionOutputReply(TypedDict):
    """What a call gave."""

    id: str
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: str
    status: str


InputItem = InputMessageReply | FunctionCallReply | CustomCallReply | FunctionOutputReply | ReasoningReply


class InputItemsReply(TypedDict):
    """Answer of ``GET /v1/responses/{id}/input_items``."""

    object: Literal["list"]
    data: list[InputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokensReply(TypedDict):
    """Answer of ``POST /v1/responses/input_tokens``."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedReply(TypedDict):
    """Answer of ``DELETE /v1/responses/{id}``."""

    id: str
    object: Literal["response"]
    deleted: bool
