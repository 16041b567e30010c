"""openai-python's ``responses`` against a server process."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel
from server_process import Server

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"town": {"enum": ["Ur", "Bath"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["town", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "name": "weather", "description": "Of a town.", "parameters": SCHEMA, "strict": True}
]


@pytest.fixture(scope="module")
def client(tool_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=tool_server.v1, api_key=tool_server.key, max_retries=0, timeout=60) as client:
        yield client


def test_responses(client: openai.OpenAI) -> None:
    options: Any = {"input": "Tell me about rain.", "instructions": "Be kind.", "max_output_tokens": 12}
    seeded = {"seed": 4, "ignore_eos": True}
    named = client.responses.create(model="demo/bone_soup@positive=1", **options, extra_body=seeded)
    steering = {"steering": {"preference": {"positive": 1}}, **seeded}
    asked = client.responses.create(model="demo", **options, extra_body=steering)
    assert named.output_text == asked.output_text != "" and named.status == "incomplete"
    assert named.steering["preference"] == asked.steering["preference"]  # type: ignore[attr-defined]
    assert asked.usage is not None and asked.usage.output_tokens == 12
    events = list(client.responses.create(model="demo", stream=True, **options, extra_body=steering))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == asked.output_text and events[-1].type == "response.incomplete"


def test_a_conversation_that_the_server_keeps(client: openai.OpenAI) -> None:
    first = client.responses.create(model="demo", input="Hi", max_output_tokens=6)
    second = client.responses.create(
        model="demo", input="And?", previous_response_id=first.id, max_output_tokens=6, metadata={"a": "b"}
    )
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    found = client.responses.retrieve(second.id)
    assert found.output_text == second.output_text and found.metadata == {"a": "b"}
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def test_tools(client: openai.OpenAI) -> None:
    options: Any = {"model": "demo@positive=1", "tools": TOOLS, "max_output_tokens": 200}
    asked: list[Any] = [{"role": "user", "content": "Will it rain?"}]
    with client.responses.stream(input=asked, tool_choice="required", parallel_tool_calls=False, **options) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    (call,) = final.output
    assert call.type == "function_call" and call.arguments == "".join(pieces)
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    asked += [*final.output, {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}]
    answer = client.responses.create(input=asked, tool_choice="none", **{**options, "max_output_tokens": 6})
    assert answer.output[0].type == "message"


def test_custom_tools(client: openai.OpenAI) -> None:
    grammar: Any = {"type": "grammar", "syntax": "regex", "definition": r"print\([0-9]{1,3}\)"}
    tools = [{"type": "custom", "name": "run", "format": grammar}]
    options: Any = {"model": "demo", "tools": tools, "max_output_tokens": 200}
    with client.responses.stream(input="Count.", tool_choice={"type": "custom", "name": "run"}, **options) as stream:
        pieces = [event.delta for event in stream if event.type == "response.custom_tool_call_input.delta"]
        final = stream.get_final_response()
    (call,) = final.output
    assert call.type == "custom_tool_call" and call.input == "".join(pieces)
    assert re.fullmatch(grammar["definition"], call.input)


class Rain(BaseModel):
    wet: bool
    days: int


def test_forms(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model="demo", input="Rain?", text_format=Rain)
    assert isinstance(parsed.output_parsed, Rain)


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(model="demo", input="Hi", tools=[{"type": "web_search"}])
    assert bad.value.param == "tools[0].type"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-5", input="Hi")


def test_a_stream_that_is_left_frees_its_lanes(client: openai.OpenAI, tool_server: Server) -> None:
    with tool_server.abandoned():
        endless = {"ignore_eos": True}
        options: Any = {"max_output_tokens": 8000, "extra_body": endless, "store": True}
        stream = client.responses.create(model="demo", input="Hi", stream=True, **options)
        next(stream)
        stream.close()
