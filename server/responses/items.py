"""The items of the Responses API, and what they are to a chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, TypeAdapter

from ladle.merging.exceptions import InputError
from ladle.server.fields.chat_messages import Message, text_of
from ladle.server.http.kinds import OF_KINDS, TEXT_OR_LIST, only_kinds
from ladle.server.http.strict_model import UNREAD, StrictModel, Unread
from ladle.server.responses.tools import shown_name
from ladle.server.tools.custom_tools import CustomToolCall
from ladle.server.tools.schemas import FUNCTION_NAME, Arguments, ToolCall


class InputText(StrictModel):
    """A text of whoever asks."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Unread = UNREAD


class OutputText(StrictModel):
    """A text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: Unread = UNREAD
    logprobs: Unread = UNREAD
    # The official client's helpers put it there, and send it back.
    parsed: Unread = UNREAD


class Refusal(StrictModel):
    """A refusal of an answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """What was said."""
        return self.refusal


_Part = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[Refusal, Tag("<refusal>")],
    OF_KINDS,
    only_kinds("input_text", "output_text", "refusal"),
]
_InputOnly = Annotated[Annotated[InputText, Tag("<input_text>")], only_kinds("input_text")]
Content = Annotated[Annotated[str, Tag("<text>")] | Annotated[list[_Part], Tag("<list>")], TEXT_OR_LIST]
Given = Annotated[Annotated[str, Tag("<text>")] | Annotated[list[_InputOnly], Tag("<list>")], TEXT_OR_LIST]


class MessageItem(StrictModel):
    """A message. ``developer`` is the newer name of ``system``."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Unread = UNREAD
    phase: Unread = UNREAD


class NamespacedCall(ToolCall):
    """A call of a function in a namespace: ``own_name`` is what it is called there."""

    namespace: str
    own_name: str

    @classmethod
    def within(cls, namespace: str | None, call: ToolCall) -> ToolCall:
        """``call``, whose function is called so in ``namespace``; as it is where there is none."""
        if not namespace:
            return call
        name = call.function.name
        function = call.function.model_copy(update={"name": shown_name(namespace, name)})
        return cls.model_construct(id=call.id, type=call.type, function=function, namespace=namespace, own_name=name)


class FunctionCallItem(StrictModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    arguments: Arguments = ""
    id: str | None = None
    status: Unread = UNREAD
    caller: Unread = UNREAD
    namespace: str | None = None
    async_: Annotated[Unread, Field(alias="async")] = UNREAD
    parsed_arguments: Unread = UNREAD

    def call(self) -> ToolCall:
        """What a conversation holds of this."""
        return NamespacedCall.within(self.namespace, ToolCall.of(self.call_id, self.name, self.arguments))


class CustomCallItem(StrictModel):
    """A call of a custom tool that the model made."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    input: str
    id: str | None = None
    status: Unread = UNREAD
    caller: Unread = UNREAD
    async_: Annotated[Unread, Field(alias="async")] = UNREAD

    def call(self) -> CustomToolCall:
        """What a conversation holds of this."""
        return CustomToolCall.of(self.call_id, self.name, self.input)


class CallOutputItem(StrictModel):
    """What a call gave, of a function or of a custom tool."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Given
    id: str | None = None
    status: Unread = UNREAD
    name: Unread = UNREAD
    caller: Unread = UNREAD
    namespace: Unread = UNREAD


class ReasoningText(StrictModel):
    """A thought."""

    type: Literal["reasoning_text"]
    text: str


_Thought = Annotated[Annotated[ReasoningText, Tag("<reasoning_text>")], only_kinds("reasoning_text")]


class ReasoningItem(StrictModel):
    """What the assistant thought before what follows; for chat templates that show it."""

    type: Literal["reasoning"]
    id: str | None = None
    content: list[_Thought] | None = None
    summary: Unread = UNREAD
    encrypted_content: Unread = UNREAD
    status: Unread = UNREAD


class ItemReference(StrictModel):
    """An item of an answer that is kept."""

    type: Literal["item_reference"]
    id: str


def _meant(item: dict[str, Any]) -> str | None:
    if "role" in item:
        return "message"
    return "item_reference" if item.keys() <= {"id", "type"} and "id" in item else None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[CustomCallItem, Tag("<custom_tool_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")]
    | Annotated[CallOutputItem, Tag("<custom_tool_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    OF_KINDS,
    only_kinds(
        "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning",
        "item_reference", default=_meant,
    ),
]  # fmt: skip
AnyItem = MessageItem | FunctionCallItem | CustomCallItem | CallOutputItem | ReasoningItem | ItemReference
_ITEM: TypeAdapter[AnyItem] = TypeAdapter(Item)
Reference = Callable[[str], Mapping[str, Any] | None]
"""The item of an answer that is kept, by its id; None where there is none."""


def messages_of(items: Sequence[AnyItem], reference: Reference, field: str = "input") -> list[Message]:
    """The items of ``field`` as chat templates take them: calls are a part of the message that comes before them.

    Raises:
        InputError: a reference to nothing.
    """
    messages: list[Message] = []
    thoughts: list[str] = []
    for index, item in enumerate(items):
        if isinstance(item, ItemReference):
            referenced = reference(item.id)
            if referenced is None:
                raise InputError(f"{field}[{index}].id", item.id, "the id of an item of an answer that is kept")
            item = _ITEM.validate_python(dict(referenced))
        if isinstance(item, ReasoningItem):
            thoughts += [thought.text for thought in item.content or ()]
        elif isinstance(item, CallOutputItem):
            messages.append(Message.result(item.call_id, text_of(item.output) or ""))
        elif isinstance(item, (FunctionCallItem, CustomCallItem)):
            if not messages or messages[-1].role != "assistant":
                messages.append(Message.answer(None, thoughts=thoughts))
                thoughts = []
            calls = [*(messages[-1].tool_calls or ()), item.call()]
            messages[-1] = messages[-1].model_copy(update={"tool_calls": calls})
        elif isinstance(item, MessageItem):
            text = text_of(item.content) or ""
            if item.role == "assistant":
                messages.append(Message.answer(text, thoughts=thoughts))
                thoughts = []
            else:
                role = "system" if item.role == "developer" else item.role
                messages.append(Message.model_construct(role=role, content=text))
    return messages


def _items(value: Any) -> Any:
    """``input`` as items: a string is a message of the user."""
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


MOST_INSTRUCTIONS = 128
"""Items of ``instructions``: every reply repeats them, and so do three events of a stream."""
Input = Annotated[list[Item], Field(max_length=4096), BeforeValidator(_items, json_schema_input_type=str | list[Item])]
Instructions = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Item], Tag("<list>"), Field(max_length=MOST_INSTRUCTIONS)],
    TEXT_OR_LIST,
]
