"""The shapes of calls of functions and of custom tools in chats."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class CalledCustomReply(TypedDict):
    """The custom tool that is called, with the text that it is given."""

    name: str
    input: str


class CalledFunctionReply(TypedDict):
    """What is called; ``arguments`` is a JSON object as text."""

    name: str
    arguments: str


class ToolCallReply(TypedDict):
    """A call, of what its ``type`` says; ``index`` counts the calls of a streamed choice."""

    index: NotRequired[int]
    id: str
    type: Literal["function", "custom"]
    function: NotRequired[CalledFunctionReply]
    custom: NotRequired[CalledCustomReply]
