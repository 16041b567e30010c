"""Custom tools of OpenAI's APIs: functions whose one argument is a text. Chat templates show each as what it is, and a
call of one has the text as ``input``."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from ladle.merging.exceptions import InputError
from ladle.server.http.kinds import OF_KINDS, only_kinds
from ladle.server.http.strict_model import UNREAD, StrictModel, Unread
from ladle.server.tools.schemas import FUNCTION_NAME, CalledFunction, Function, Tool, ToolCall, turn_of_call

INPUT = "input"
"""The name of the argument."""
_MOST_CHARACTERS = 20_000
# An escaped character, a class, what opens and closes groups.
_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|[()]|\\\Z", re.DOTALL)


def _syntax(value: Any) -> Any:
    if value == "lark":
        reason = "a grammar of this kind describes whole answers, and an input is written as JSON within one"
        raise InputError("syntax", value, "regex", reason)
    return value


def _whole(definition: str) -> str:
    """A validator of patterns that stay one when they are put into a group."""
    depth = 0
    for token in _TOKEN.findall(definition):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth < 0 or token == "\\":
            break
    else:
        if depth == 0:
            return definition
    raise ValueError("allowed: a regular expression whose groups and escapes are closed")


class GrammarDefinition(StrictModel):
    """What an input must look like: all of it fits the regular expression."""

    syntax: Annotated[Literal["regex"], BeforeValidator(_syntax)]
    definition: Annotated[str, Field(min_length=1, max_length=_MOST_CHARACTERS), AfterValidator(_whole)]

    @property
    def pattern(self) -> str:
        """The pattern of a JSON schema."""
        return f"^(?:{self.definition})$"


class TextInput(StrictModel):
    """Any text."""

    type: Literal["text"]


class GrammarInput(StrictModel):
    """A text that a grammar describes."""

    type: Literal["grammar"]
    grammar: GrammarDefinition


_Format = Annotated[
    Annotated[TextInput, Tag("<text>")] | Annotated[GrammarInput, Tag("<grammar>")],
    OF_KINDS,
    only_kinds("text", "grammar"),
]


class CustomBody(StrictModel):
    """``custom`` of a tool."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    format: _Format | None = Field(None, description="what its input looks like; default: any text")


class CustomTool(StrictModel):
    """An entry of ``tools``: a function that takes a text."""

    type: Literal["custom"]
    custom: CustomBody
    cache_control: Unread = UNREAD

    @property
    def bound_by(self) -> str | None:
        """The pattern of its input, where it has one."""
        form = self.custom.format
        return form.grammar.pattern if isinstance(form, GrammarInput) else None

    @property
    def function(self) -> Function:
        """The function that it is to a chat template."""
        text = {"type": "string"} if self.bound_by is None else {"type": "string", "pattern": self.bound_by}
        parameters = {
            "type": "object",
            "properties": {INPUT: text},
            "required": [INPUT],
            "additionalProperties": False,
        }
        return Function.model_construct(
            name=self.custom.name, description=self.custom.description, parameters=parameters
        )

    def field(self, index: int) -> str:
        """What errors call its format, where it is the tool ``index`` of all."""
        return f"tools[{index}].custom.format"

    def definition(self) -> dict[str, Any]:
        """The tool as chat templates show it to the model."""
        return Tool.model_construct(type="function", function=self.function).definition()


class CalledCustom(StrictModel):
    """``custom`` of a call."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    input: str


class CustomToolCall(StrictModel):
    """A call of a custom tool that the model made earlier in the conversation."""

    id: str
    type: Literal["custom"]
    custom: CalledCustom
    index: int | None = None
    cache_control: Unread = UNREAD
    provider_specific_fields: Unread = UNREAD

    @classmethod
    def of(cls, name: str, tool: str, text: str) -> CustomToolCall:
        """The call ``name`` of ``tool`` with ``text``; nothing is checked."""
        return cls.model_construct(id=name, type="custom", custom=CalledCustom.model_construct(name=tool, input=text))

    @property
    def function(self) -> CalledFunction:
        """The call as one of a function."""
        arguments = json.dumps({INPUT: self.custom.input}, ensure_ascii=False)
        return CalledFunction.model_construct(name=self.custom.name, arguments=arguments)

    def turn(self) -> dict[str, Any]:
        """The call as chat templates take it."""
        return turn_of_call(self.id, self.function)


def _of_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<custom>" if kind == "custom" else "<function>"


_BY_TYPE = Discriminator(_of_kind)
AnyTool = Annotated[Annotated[Tool, Tag("<function>")] | Annotated[CustomTool, Tag("<custom>")], _BY_TYPE]
AnyToolCall = Annotated[Annotated[ToolCall, Tag("<function>")] | Annotated[CustomToolCall, Tag("<custom>")], _BY_TYPE]
