"""Functions that a model may call, and its calls of them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import from_json

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
        """The call as chat templates take it."""
        return turn_of_call(self.id, self.function)


def turn_of_call(name: str, function: CalledFunction) -> dict[str, Any]:
    """The call ``name`` as chat templates take it: with the arguments themselves, or their text where it was cut."""
    text = function.arguments
    try:
        arguments = strict_json(text) if text.strip() else {}
    except ValueError:
        arguments = text
    return {"id": name, "type": "function", "function": {"name": function.name, "arguments": arguments}}
