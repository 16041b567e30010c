"""``tools``, ``tool_choice`` and the messages that go with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import from_json

from ladle.merging.exceptions import InputError
from ladle.option_kinds import UNSET, without_unset
from ladle.server.http.strict_json import finite, finite_object, strict_json
from ladle.server.http.strict_model import UNREAD, StrictModel, Unread

MAX_TOOLS = 128
FUNCTION_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class Function(StrictModel):
    """A function that the model may call. ``strict`` changes nothing: calls that must be made always fit their schema,
    calls that the model makes of its own accord are what it says."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(finite_object)] | None = Field(
        None, description="a JSON schema of an object; default: none"
    )
    strict: bool | None = None
    cache_control: Unread = UNREAD
    annotations: Unread = UNREAD


class Tool(StrictModel):
    """An entry of ``tools``."""

    type: Literal["function"]
    function: Function
    cache_control: Unread = UNREAD
    annotations: Unread = UNREAD

    def field(self, index: int) -> str:
        """What errors call its parameters, where it is the tool ``index`` of all."""
        return f"tools[{index}].function.parameters"

    def definition(self) -> dict[str, Any]:
        """The tool as chat templates show it to the model."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        return {"type": "function", "function": {**function, "parameters": self.function.parameters or NO_ARGUMENTS}}


@dataclass(frozen=True)
class ToolChoice:
    """Whether functions are called, and which.

    Attributes:
        mode: ``none``, ``auto`` or ``required``.
        name: of the one function that is called.
        allowed: names of those that may be, where not all of them.
    """

    mode: str
    name: str | None = None
    allowed: tuple[str, ...] = ()


def given(value: Any) -> Any:
    """A tool choice, or a part of one, without what is unset in it, however deep."""
    if isinstance(value, dict):
        return {key: given(item) for key, item in without_unset(value).items()}
    return [given(item) for item in value] if isinstance(value, list) else value


def _choice(value: Any) -> ToolChoice | None:
    if value is None or value in ("none", "auto", "required"):
        return None if value is None else ToolChoice(value)
    value = given(value)
    if isinstance(value, dict) and set(value) == {"type", "function"} and value["type"] == "function":
        function = value["function"]
        if isinstance(function, dict) and set(function) == {"name"} and isinstance(function["name"], str):
            return ToolChoice("required", function["name"])
    if isinstance(value, dict) and set(value) == {"type", "allowed_tools"} and value["type"] == "allowed_tools":
        return _allowed(value["allowed_tools"])
    raise ValueError(_CHOICES)


def _allowed(value: Any) -> ToolChoice:
    if not isinstance(value, dict) or set(value) != {"mode", "tools"} or value["mode"] not in ("auto", "required"):
        raise ValueError(_CHOICES)
    if not isinstance(value["tools"], list) or not value["tools"]:
        raise ValueError(_CHOICES)
    named = [_choice(tool) if isinstance(tool, dict) else None for tool in value["tools"]]
    names = tuple(choice.name for choice in named if choice is not None and choice.name is not None)
    if len(names) < len(named):
        raise ValueError(_CHOICES)
    return ToolChoice(value["mode"], allowed=names)


_CHOICES = (
    'allowed: none, auto, required, {"type": "function", "function": {"name": "..."}} or {"type": "allowed_tools", '
    '"allowed_tools": {"mode": "auto" or "required", "tools": [{"type": "function", "function": {"name": "..."}}]}}'
)


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": UNSET,
        "required": list(properties),
        "properties": properties,
    }


_NAMED = _object(type={"const": "function"}, function=_object(name={"type": "string"}))
_SOME = _object(mode={"enum": ["auto", "required"]}, tools={"type": "array", "items": _NAMED, "minItems": 1})
_CHOICE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        _NAMED,
        _object(type={"const": "allowed_tools"}, allowed_tools=_SOME),
        {"type": "null"},
    ]
}


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


def require_fit(names: Sequence[str], choice: ToolChoice | None) -> None:
    """Raise InputError where tools of these names are not told apart, or where there is nothing to choose from."""
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise InputError("tools", twice, "every name once")
    if choice is not None and choice.mode == "required" and not names:
        raise InputError("tool_choice", choice.name or choice.mode, "none", "there are no tools to choose from")
    if choice is not None and choice.name is not None and choice.name not in names:
        raise InputError("tool_choice.function.name", choice.name, f"the name of a tool: {', '.join(names)}")
    for name in () if choice is None else choice.allowed:
        if name not in names:
            raise InputError("tool_choice.allowed_tools.tools", name, f"names of tools: {', '.join(names) or 'none'}")


class ToolFields(StrictModel):
    """What a chat says about functions."""

    tools: Tools | None = None
    tool_choice: Annotated[ToolChoice | None, PlainValidator(_choice), WithJsonSchema(_CHOICE_SCHEMA)] = None
    parallel_tool_calls: bool | None = Field(None, description="default true: an answer may hold several calls")

    @model_validator(mode="after")
    def _fit(self) -> ToolFields:
        require_fit([tool.function.name for tool in self.tools or ()], self.tool_choice)
        return self

    @property
    def offered(self) -> list[Tool]:
        """The tools that may be called; none with tool_choice none."""
        choice = self.tool_choice
        if choice is not None and choice.mode == "none":
            return []
        allowed = () if choice is None else choice.allowed
        return [tool for tool in self.tools or () if not allowed or tool.function.name in allowed]


def _as_text(value: Any) -> Any:
    """Arguments that came as what they are, or not at all, as JSON text."""
    if value is None:
        return ""
    return json.dumps(finite_object(value), ensure_ascii=False) if isinstance(value, dict) else value


def json_object(value: str) -> str:
    """A validator of the arguments of a call, which are JSON as text; of a call that was cut, the beginning of it."""
    try:
        document = strict_json(value) if value.strip() else {}
    except ValueError as error:
        if value.lstrip()[:1] == "{" and _is_cut(value):
            return value
        raise ValueError(f"allowed: a JSON object as text; {error}") from None
    if not isinstance(document, dict):
        raise ValueError("allowed: a JSON object as text")
    return value


def _is_cut(text: str) -> bool:
    """Whether ``text``, which is no JSON by the standard, only wants its end."""
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
        return False  # a whole value, and something after it
    except (ValueError, RecursionError):
        pass
    try:
        return finite(from_json(text, allow_inf_nan=False, allow_partial=True))
    except ValueError:
        return False


Arguments = Annotated[
    str,
    BeforeValidator(_as_text, json_schema_input_type=str | dict[str, Any] | None),
    AfterValidator(json_object),
    Field(description='a JSON object as text, or as it is; "" and null are {}'),
]


class CalledFunction(StrictModel):
    """``function`` of a call."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    arguments: Arguments = ""
    # The official client's helpers put it there, and send it back.
    parsed_arguments: Unread = UNREAD


class ToolCall(StrictModel):
    """A call that the model made earlier in the conversation."""

    id: str
    type: Literal["function"] | None = Field(None, description="function, the only one there is")
    function: CalledFunction
    index: int | None = None
    cache_control: Unread = UNREAD
    provider_specific_fields: Unread = UNREAD
    extra_content: Unread = UNREAD

    @classmethod
    def of(cls, name: str, function: str, arguments: str) -> ToolCall:
        """The call ``name`` of ``function``; nothing is checked."""
        called = CalledFunction.model_construct(name=function, arguments=arguments)
        return cls.model_construct(id=name, type="function", function=called)

    def turn(self) -> dict[str, Any]:
        """The call as chat templates take it: with the arguments themselves, or their text where it was cut."""
        text = self.function.arguments
        try:
            arguments = strict_json(text) if text.strip() else {}
        except ValueError:
            arguments = text
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}
