"""The body of ``POST /v1/responses``, as far as it is supported, with our extensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, model_validator

from ladle.merging.exceptions import InputError
from ladle.nulls import UNSET
from ladle.server.fields.chat_messages import Message, TemplateVariables
from ladle.server.fields.conversation import Conversation, Spelling
from ladle.server.fields.known_fields import OTHERS, UNREAD_OTHERS, Defaults, only, with_known
from ladle.server.fields.output_format import FORMAT_NAME, JsonSchema, ResponseFormat, Schema
from ladle.server.fields.sampling import MaxTokens, SteeredFields, StopField, TopLogprobs
from ladle.server.fields.thinking_options import Effort
from ladle.server.http.strict_json import finite_object
from ladle.server.http.strict_model import UNREAD, StrictModel, Unread
from ladle.server.responses.items import Input, Instructions, Item, ItemReference, Reference, messages_of
from ladle.server.responses.tools import Tools, offered, shown_name
from ladle.server.tools.choices import KINDS, ToolChoice, given, require_fit

SPELLING = Spelling(
    {
        r"tools\[(\d+)\]\.function\.parameters": r"tools[\1].parameters",
        r"tool_choice\.function\.name": "tool_choice.name",
        r"tool_choice\.allowed_tools": "tool_choice",
        r"response_format\.json_schema\.schema": "text.format.schema",
        r"response_format": "text.format",
        r"reasoning_effort": "reasoning.effort",
        # Calls that are joined move the places of messages.
        r"messages(\[\d+\](\.\w+)*)?": "input",
    }
)
"""What the fields of a conversation are called here."""

LOGPROBS = "message.output_text.logprobs"
_INCLUDED = frozenset(
    {
        LOGPROBS,
        # Parts of items that no answer here has.
        "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results",
        "web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    }
)  # fmt: skip
_NOT_SUPPORTED: Defaults = {
    **OTHERS,
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "enable_response_messages": (False,),
    "moderation": (),
    "previous_input_messages": (),
    "prompt": (),
    "stream_options": ({}, {"include_obfuscation": False}),
    "truncation": ("disabled",),
}
_UNREAD = (
    # There are no built-in tools whose calls it would count.
    "max_tool_calls",
    # Images are none of its content.
    "image",
    "access_programs", "client_metadata",
    *(name for name in UNREAD_OTHERS if name not in ("metadata", "store")),
)  # fmt: skip

if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.fields.sampling import SteeredFields as ResponsesBase
else:
    ResponsesBase = with_known(SteeredFields, "ResponsesFields", _NOT_SUPPORTED, _UNREAD)


def _is_tool(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"type", "name"} <= set(value) <= {"type", "name", "namespace"}
        and value["type"] in KINDS
        and isinstance(value["name"], str)
        and isinstance(value.get("namespace"), str | None)
    )


def _choice(value: Any) -> Any:
    value = given(value)
    if value is None or value in ("none", "auto", "required") or _is_tool(value):
        return value
    if (
        isinstance(value, dict)
        and set(value) == {"type", "mode", "tools"}
        and value["type"] == "allowed_tools"
        and value["mode"] in ("auto", "required")
        and isinstance(value["tools"], list)
        and value["tools"]
        and all(map(_is_tool, value["tools"]))
    ):
        return value
    raise ValueError(
        'allowed: none, auto, required, {"type": "function" or "custom", "name": "..."} or {"type": "allowed_tools", '
        '"mode": "auto" or "required", "tools": [{"type": "function", "name": "..."}]}'
    )


_FUNCTION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": UNSET,
    "required": ["type", "name"],
    "properties": {
        "type": {"enum": list(KINDS)},
        "name": {"type": "string"},
        "namespace": {"type": ["string", "null"]},
    },
}
_CHOICE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": ["none", "auto", "required", None]},
        _FUNCTION_SCHEMA,
        {
            "type": "object",
            "additionalProperties": UNSET,
            "required": ["type", "mode", "tools"],
            "properties": {
                "type": {"const": "allowed_tools"},
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "items": _FUNCTION_SCHEMA, "minItems": 1},
            },
        },
    ]
}


class TextFormat(StrictModel):
    """``text.format``: free text, any JSON object, or JSON that fulfils a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=FORMAT_NAME)] | None = None
    description: str | None = None
    schema_: Annotated[Annotated[Schema, AfterValidator(finite_object)] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> TextFormat:
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if (self.type == "json_schema") != (value is not None):
                raise InputError(
                    name, value, reason="it is required with type json_schema, and goes with no other type"
                )
        return self

    def echoed(self) -> dict[str, Any]:
        """What replies repeat of this."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {
            "type": self.type,
            "name": self.name,
            "description": self.description,
            "schema": self.schema_,
            "strict": self.strict,
        }

    def response_format(self) -> ResponseFormat:
        """What a conversation holds of this."""
        schema = None
        if self.schema_ is not None:
            schema = JsonSchema.model_construct(name=self.name, schema_=self.schema_)
        return ResponseFormat.model_construct(type=self.type, json_schema=schema)


class TextConfig(StrictModel):
    """``text``."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, AfterValidator(only("medium")), WithJsonSchema({"enum": [None, "medium"]})] = Field(
        None, description="not supported"
    )


class Reasoning(StrictModel):
    """``reasoning``: how long the thought in front of the answer may be."""

    effort: Effort | None = Field(None, description="a budget for the thought that the family has a name for")
    context: Unread = UNREAD
    generate_summary: Unread = UNREAD
    mode: Annotated[Any, AfterValidator(only("standard")), WithJsonSchema({"enum": [None, "standard"]})] = Field(
        None, description="not supported"
    )
    summary: Unread = UNREAD


def _included(value: list[str]) -> list[str]:
    for name in value:
        if name not in _INCLUDED:
            raise ValueError(f"{name[:100]!r} is not known; allowed: {', '.join(sorted(_INCLUDED))}")
    return value


_MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], _MetadataValue], Field(max_length=16)]


class ResponsesRequest(ResponsesBase):
    """``POST /v1/responses``."""

    input: Input = Field([], description="a string, or items; nothing only together with instructions")
    instructions: Instructions | None = Field(
        None, description="a system message, or items that come before the others; for this answer only"
    )
    previous_response_id: str | None = Field(None, description="an answer that is kept, which this one goes on from")
    store: bool | None = Field(None, description="whether the answer is kept, for a while; default true")
    max_output_tokens: MaxTokens | None = None
    tools: Tools | None = None
    tool_choice: Annotated[Any, PlainValidator(_choice), WithJsonSchema(_CHOICE_SCHEMA)] = None
    parallel_tool_calls: bool | None = Field(None, description="default true: an answer may hold several calls")
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[str], AfterValidator(_included)] | None = None
    stop: StopField = Field([], validate_default=False, description="extension")
    chat_template_kwargs: TemplateVariables | None = Field(None, description="as with chats; extension")
    top_logprobs: TopLogprobs | None = None
    metadata: Metadata | None = Field(None, description="comes back with the answer")

    @model_validator(mode="after")
    def _consistent(self) -> ResponsesRequest:
        with SPELLING.applied():
            require_fit([tool.function.name for tool in offered(self.tools or ())], self._chosen())
        return self

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are reported."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def keeps(self) -> bool:
        """Whether the answer is kept."""
        return self.store is not False

    @property
    def parts(self) -> int:
        """How many items it has."""
        return len(self._items)

    @property
    def referenced(self) -> frozenset[str]:
        """The ids of the items that it refers to."""
        return frozenset(item.id for item in self._items if isinstance(item, ItemReference))

    @property
    def _items(self) -> tuple[Item, ...]:
        return (*self.input, *(self.instructions if isinstance(self.instructions, list) else ()))

    def chat(self, told: Sequence[Message], earlier: Sequence[Message], reference: Reference) -> Conversation:
        """The request as all endpoints understand it, after what it is ``told`` and what was said ``earlier``.

        Raises:
            InputError: there are no messages, or a reference to nothing.
        """
        messages = [*told, *earlier, *messages_of(self.input, reference)]
        if not messages:
            raise InputError("input", [], "a string, or at least one item")
        form = None if self.text is None or self.text.format is None else self.text.format.response_format()
        return _ResponseConversation.model_construct(
            **self.steered(),
            messages=messages,
            max_tokens=self.max_output_tokens,
            tools=offered(self.tools or ()) or None,
            tool_choice=self._chosen(),
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=form,
            stop=self.stop,
            chat_template_kwargs=self.chat_template_kwargs,
            reasoning_effort=None if self.reasoning is None else self.reasoning.effort,
            reported=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def told(self, reference: Reference) -> list[Message]:
        """The instructions, as they come before the conversation. Raises InputError: a reference to nothing."""
        if isinstance(self.instructions, str):
            return [Message.model_construct(role="system", content=self.instructions)]
        return messages_of(self.instructions or (), reference, "instructions")

    @property
    def repeated(self) -> str | list[dict[str, Any]] | None:
        """The instructions, as replies repeat them."""
        if not isinstance(self.instructions, list):
            return self.instructions
        return [item.model_dump(mode="json", by_alias=True, exclude_unset=True) for item in self.instructions]

    def _chosen(self) -> ToolChoice | None:
        choice = self.tool_choice
        if choice is None or isinstance(choice, str):
            return None if choice is None else ToolChoice(choice)
        if choice["type"] in KINDS:
            return ToolChoice("required", shown_name(choice.get("namespace"), choice["name"]))
        allowed = [shown_name(tool.get("namespace"), tool["name"]) for tool in choice["tools"]]
        return ToolChoice(choice["mode"], allowed=tuple(allowed))


class _ResponseConversation(Conversation):
    """A conversation whose answer comes with log-probabilities of so many alternatives; None: without."""

    reported: int | None = None

    @property
    def limit(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.reported
