"""Items where other values may stand: instructions, and arguments of earlier calls."""

from typing import Any

import openai
import pytest
from tool_engine import ToolEngine

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
TOOLS: list[Any] = [{"type": "function", "name": "weather"}]


@pytest.fixture
def served(family: Family) -> ToolEngine:
    return ToolEngine(family, "/v1/responses")


async def test_instructions_may_be_items(served: ToolEngine) -> None:
    """They come first, are repeated, and are no part of what an answer is gone on from."""
    items: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Once."}]},
        {"type": "function_call", "call_id": "1", "name": "now", "arguments": "", "async": False},
        {"type": "function_call_output", "call_id": "1", "output": "noon"},
    ]
    reply = await served.ask(instructions=items, input="Hi")
    told = served.engine.requests[-1].prompt
    assert reply["instructions"] == [{"type": "message", **items[0]}, *items[1:]]
    openai.types.responses.Response.model_validate(reply)
    events = await served.ask(instructions=items, input="Hi", stream=True)
    assert events[-1]["response"]["instructions"] == reply["instructions"]
    await served.ask(input=[{**items[0], "role": "system"}, *items[1:], {"role": "user", "content": "Hi"}])
    assert served.engine.requests[-1].prompt == told
    await served.ask(input="Why?", previous_response_id=reply["id"])
    assert "Be kind" not in served.prompt and "Once" not in served.prompt
    await served.ask(instructions=[], input="Hi")
    error = (await served.ask(400, instructions=[{"type": "input_image"}], input="Hi"))["error"]
    assert error["param"] == "instructions[0].type"
    error = (await served.ask(400, instructions=[{"type": "item_reference", "id": "no"}], input="Hi"))["error"]
    assert error["param"] == "instructions[0].id"


@pytest.mark.parametrize("arguments", [{"town": "Ur"}, '{"town": "Ur"}', None, ""])
async def test_arguments_of_calls_may_be_objects(served: ToolEngine, arguments: Any) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "weather", "arguments": arguments, "async": False}
    await served.ask(input=[call, {"type": "function_call_output", "call_id": "1", "output": "wet"}], tools=TOOLS)
    assert ('"arguments": {"town": "Ur"}' if arguments else '"arguments": {}') in served.prompt
