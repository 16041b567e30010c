"""What an answer that is kept was asked, as items of the Responses API."""

from __future__ import annotations

from collections.abc import Sequence

from ladle.merging.exceptions import InputError
from ladle.server.fields.chat_messages import Message
from ladle.server.replies.responses import FunctionCallReply, InputItem, InputItemsReply, ReasoningTextReply
from ladle.server.responses.items import NamespacedCall
from ladle.server.tools.custom_tools import CustomToolCall


def input_items(name: str, messages: Sequence[Message]) -> list[InputItem]:
    """The messages that the answer ``name`` answers, instructions left out, in their order. An item has the same id
    whenever it is asked for."""
    items: list[InputItem] = []

    def identity(kind: str) -> str:
        return f"{kind}_{name.removeprefix('resp_')}_{len(items)}"

    customs: set[str] = set()
    for message in messages:
        if message.role == "tool":
            custom = message.tool_call_id in customs
            items.append(
                {
                    "id": identity("ctco" if custom else "fco"),
                    "type": "custom_tool_call_output" if custom else "function_call_output",
                    "call_id": message.tool_call_id or "",
                    "output": message.content or "",
                    "status": "completed",
                }
            )
            continue
        if message.reasoning_content:
            thought: ReasoningTextReply = {"type": "reasoning_text", "text": message.reasoning_content}
            items.append({"id": identity("rs"), "type": "reasoning", "summary": [], "content": [thought]})
        if message.content or not message.tool_calls:
            items.append(
                {
                    "id": identity("msg"),
                    "type": "message",
                    "role": message.role,
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": message.content or "", "annotations": [], "logprobs": []}
                        if message.role == "assistant"
                        else {"type": "input_text", "text": message.content or ""}
                    ],
                }
            )
        for call in message.tool_calls or ():
            if isinstance(call, CustomToolCall):
                customs.add(call.id)
                items.append(
                    {
                        "id": identity("ctc"),
                        "type": "custom_tool_call",
                        "call_id": call.id,
                        "name": call.custom.name,
                        "input": call.custom.input,
                        "status": "completed",
                    }
                )
                continue
            item: FunctionCallReply = {
                "id": identity("fc"),
                "type": "function_call",
                "call_id": call.id,
                "name": call.function.name,
                "arguments": call.function.arguments,
                "status": "completed",
            }
            if isinstance(call, NamespacedCall):
                item["name"], item["namespace"] = call.own_name, call.namespace
            items.append(item)
    return items


def page(items: Sequence[InputItem], limit: int, newest_first: bool, after: str | None) -> InputItemsReply:
    """At most ``limit`` of the items, those that follow the one with the id ``after``.

    Raises:
        InputError: there is no such item.
    """
    ordered = list(reversed(items)) if newest_first else list(items)
    start = 0
    if after is not None:
        indices = [index for index, item in enumerate(ordered) if item["id"] == after]
        if not indices:
            raise InputError("after", after[:200], "the id of one of the items")
        start = indices[0] + 1
    data = ordered[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(ordered),
    }
