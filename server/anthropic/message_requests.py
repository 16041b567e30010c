"""The bodies of Anthropic's two endpoints, as far as they are supported, with our extensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag, WithJsonSchema, model_validator

from ladle.merging.exceptions import InputError
from ladle.server.anthropic.blocks import TOOL_NAME, Texts, ToolUseBlock, Turn, conversation, text_of
from ladle.server.api_errors import ApiError
from ladle.server.fields.chat_messages import TemplateVariables
from ladle.server.fields.conversation import Conversation, Spelling
from ladle.server.fields.known_fields import OTHERS, UNREAD_OTHERS, Defaults, only, with_known
from ladle.server.fields.output_format import JsonSchema, ResponseFormat, Schema
from ladle.server.fields.sampling import MaxTokens, SteeredFields, StopField
from ladle.server.fields.thinking_options import ThinkingOptions
from ladle.server.http.strict_json import finite_object
from ladle.server.http.strict_model import StrictModel
from ladle.server.tools.choices import ToolChoice, require_fit
from ladle.server.tools.schemas import MAX_TOOLS, Function, Tool
from ladle.server.tools.searches import OF_TOOLS, WebSearchTool, only_tools, require_beside


class _Spelling(Spelling):
    def error(self, error: ApiError) -> ApiError:
        """Clients read these words to take fewer messages, or a smaller ``max_tokens``, and try again."""
        spelt, over = super().error(error), error.overflow
        if over is None:
            return spelt
        said = f"prompt is too long: {over.prompt} tokens > {over.context} maximum"
        if over.asked is not None:
            said = f"input length and `max_tokens` exceed context limit: {over.prompt} + {over.asked} > {over.context}"
        return ApiError(spelt.status_code, f"{spelt.message}; {said}", param=spelt.param, code=spelt.code)


SPELLING = _Spelling(
    {
        r"tools\[(\d+)\]\.function\.parameters": r"tools[\1].input_schema",
        r"tool_choice\.function\.name": "tool_choice.name",
        r"parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        r"response_format(\.json_schema\.schema)?": "output_config.format.schema",
        # Turns that are joined, and what calls gave, move the places of messages.
        r"messages\[\d+\](\.\w+)*": "messages",
        r"continue_final_message": "messages",
        r"stop": "stop_sequences",
        r"reasoning_effort": "output_config.effort",
    }
)
"""What the fields of a conversation are called here."""

_NOT_SUPPORTED: Defaults = {
    **OTHERS,
    "compaction": (),
    "container": (),
    # The last keeps every thought, as all of them are kept here.
    "context_management": ({}, {"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}),
    "fallbacks": ([],),
    "mcp_servers": ([],),
    "output_format": (),
    "task_budget": (),
    "thread": (),
}
_UNREAD = (
    "billing_policy", "cache_control", "diagnostics", "fallback_credit_token", "inference_geo", "speed",
    "user_profile_id", "workspace_id", *UNREAD_OTHERS,
)  # fmt: skip
_TOOL: Defaults = {"allowed_callers": (["direct"],), "defer_loading": (False,), "input_examples": ([],)}

if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.fields.sampling import SteeredFields as MessagesBase
    from ladle.server.http.strict_model import StrictModel as ToolBase
    from ladle.server.http.strict_model import StrictModel as _CountedFields
else:
    MessagesBase = with_known(SteeredFields, "MessagesFields", _NOT_SUPPORTED, _UNREAD)
    # What says how long an answer may be asks nothing about the question's tokens.
    _CountedFields = with_known(StrictModel, "CountedFields", {}, ("max_tokens", "stop_sequences"))
    ToolBase = with_known(StrictModel, "ToolParamFields", _TOOL, ("cache_control", "eager_input_streaming"))


class ToolParam(ToolBase):
    """An entry of ``tools``: a function of the client's."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    input_schema: Annotated[dict[str, Any], AfterValidator(finite_object)] = Field(description="of an object")
    strict: bool | None = None

    def tool(self) -> Tool:
        """What a conversation holds of this."""
        function = Function.model_construct(name=self.name, description=self.description, parameters=self.input_schema)
        return Tool.model_construct(type="function", function=function)


def _beside(tools: list[ToolParam | WebSearchTool]) -> list[ToolParam | WebSearchTool]:
    require_beside(tools, sum(isinstance(tool, ToolParam) for tool in tools))
    return tools


_AnyTool = Annotated[
    Annotated[ToolParam, Tag("<custom>")] | Annotated[WebSearchTool, Tag("<web_search>")],
    OF_TOOLS,
    only_tools("custom", default="custom"),
]


class ToolChoiceParam(StrictModel):
    """``tool_choice``: whether tools are used; ``any`` is any one of them."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="which, with type tool")
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> ToolChoiceParam:
        if (self.type == "tool") != (self.name is not None):
            raise InputError("name", self.name, reason="it names a tool with type tool, and goes with no other type")
        return self

    def choice(self) -> ToolChoice:
        """What a conversation holds of this."""
        return ToolChoice({"any": "required", "tool": "required"}.get(self.type, self.type), self.name)


class JsonFormat(StrictModel):
    """``output_config.format``."""

    type: Literal["json_schema"]
    schema_: Annotated[Schema, AfterValidator(finite_object), Field(alias="schema")]


class OutputConfig(StrictModel):
    """``output_config``."""

    format: JsonFormat | None = Field(None, description="what the answer looks like; it always does")
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="with adaptive thinking: a budget for it that the family has a name for; high: as without"
    )


class ThinkingParam(StrictModel):
    """``thinking``: with ``enabled``, the thought in front of the answer is told apart and has so many tokens at
    most; with ``adaptive``, it is told apart where the family thinks."""

    type: Literal["enabled", "disabled", "adaptive"]
    display: Annotated[Any, AfterValidator(only("summarized")), WithJsonSchema({"enum": [None, "summarized"]})] = Field(
        None, description="a thought is always shown, as it is"
    )
    budget_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="less than max_tokens; with enabled")

    @model_validator(mode="after")
    def _budget(self) -> ThinkingParam:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            reason = "it is a number of tokens with type enabled, and goes with no other type"
            raise InputError("budget_tokens", self.budget_tokens, reason=reason)
        return self


class _Asked(MessagesBase):
    """What both endpoints are asked."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=4096)]
    system: Texts | None = None
    tools: Annotated[list[_AnyTool], Field(max_length=MAX_TOOLS), AfterValidator(_beside)] | None = None
    tool_choice: ToolChoiceParam | None = None
    output_config: OutputConfig | None = None
    thinking: ThinkingParam | None = None
    chat_template_kwargs: TemplateVariables | None = Field(None, description="as with chats; extension")

    @model_validator(mode="after")
    def _consistent(self) -> _Asked:
        choice = None if self.tool_choice is None else self.tool_choice.choice()
        with SPELLING.applied():
            require_fit([tool.name for tool in self._functions], choice)
        last = self.messages[-1]
        if last.role == "assistant" and any(isinstance(block, ToolUseBlock) for block in last.blocks):
            index = len(self.messages) - 1
            reason = "the conversation ends in a call, whose result would come next"
            raise InputError(f"messages[{index}].content", "tool_use", reason=reason)
        return self

    @property
    def parts(self) -> int:
        """How many blocks its messages have."""
        return sum(1 if isinstance(turn.content, str) else len(turn.content) for turn in self.messages)

    def conversation(self) -> Conversation:
        """The request as all endpoints understand it. An answer of the assistant that comes last is continued."""
        choice = self.tool_choice
        return Conversation.model_construct(
            **self.steered(),
            messages=conversation(text_of(self.system), self.messages),
            continue_final_message=self.messages[-1].role == "assistant" or None,
            tools=[tool.tool() for tool in self._functions] or None,
            tool_choice=None if choice is None else choice.choice(),
            parallel_tool_calls=None if choice is None else not choice.disable_parallel_tool_use,
            response_format=self._format(),
            chat_template_kwargs=self.chat_template_kwargs,
            **self._thought(),
        )

    @property
    def _functions(self) -> list[ToolParam]:
        return [tool for tool in self.tools or () if isinstance(tool, ToolParam)]

    def _thought(self) -> dict[str, Any]:
        """What is said of thoughts, in the words of all endpoints."""
        said, config = self.thinking, self.output_config
        effort = None if config is None or config.effort == "high" else config.effort
        if effort is not None and (said is None or said.type != "adaptive"):
            reason = "other efforts than high need thinking of type adaptive"
            raise InputError("output_config.effort", effort, reason=reason)
        if said is None:
            return {}
        options = ThinkingOptions(type=said.type, budget=said.budget_tokens, message=None, verifier=None)
        return {"thinking": options, "reasoning_effort": effort}

    def _format(self) -> ResponseFormat | None:
        stated = None if self.output_config is None else self.output_config.format
        if stated is None:
            return None
        schema = JsonSchema.model_construct(name="answer", schema_=stated.schema_)
        return ResponseFormat.model_construct(type="json_schema", json_schema=schema)


class CountTokensRequest(_Asked, _CountedFields):
    """``POST /v1/messages/count_tokens``."""


class MessagesRequest(_Asked):
    """``POST /v1/messages``."""

    max_tokens: MaxTokens
    stop_sequences: StopField = Field([], validate_default=False)

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> MessagesRequest:
        budget = None if self.thinking is None else self.thinking.budget_tokens
        if budget is not None and budget >= self.max_tokens:
            raise InputError("thinking.budget_tokens", budget, f"less than max_tokens, which is {self.max_tokens}")
        return self

    def conversation(self) -> Conversation:
        return super().conversation().model_copy(update={"max_tokens": self.max_tokens, "stop": self.stop_sequences})
