"""``tools`` and ``tool_choice``: what an answer may call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from ladle.merging.exceptions import InputError
from ladle.nulls import UNSET, without_unset
from ladle.server.http.strict_model import StrictModel
from ladle.server.tools.custom_tools import AnyTool, CustomTool
from ladle.server.tools.schemas import MAX_TOOLS, Tool

KINDS = ("function", "custom")
"""Types of the tools that may be called."""


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
    for kind in KINDS:
        if isinstance(value, dict) and set(value) == {"type", kind} and value["type"] == kind:
            named = value[kind]
            if isinstance(named, dict) and set(named) == {"name"} and isinstance(named["name"], str):
                return ToolChoice("required", named["name"])
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
    'allowed: none, auto, required, {"type": "function", "function": {"name": "..."}}, {"type": "custom", "custom": '
    '{"name": "..."}} or {"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [{"type": '
    '"function", "function": {"name": "..."}}]}}'
)


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": UNSET,
        "required": list(properties),
        "properties": properties,
    }


_NAMED = {"anyOf": [_object(**{"type": {"const": kind}, kind: _object(name={"type": "string"})}) for kind in KINDS]}
_SOME = _object(mode={"enum": ["auto", "required"]}, tools={"type": "array", "items": _NAMED, "minItems": 1})
_CHOICE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        _NAMED,
        _object(type={"const": "allowed_tools"}, allowed_tools=_SOME),
        {"type": "null"},
    ]
}


Tools = Annotated[list[AnyTool], Field(max_length=MAX_TOOLS)]


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
    def offered(self) -> list[Tool | CustomTool]:
        """The tools that may be called; none with tool_choice none."""
        choice = self.tool_choice
        if choice is not None and choice.mode == "none":
            return []
        allowed = () if choice is None else choice.allowed
        return [tool for tool in self.tools or () if not allowed or tool.function.name in allowed]
