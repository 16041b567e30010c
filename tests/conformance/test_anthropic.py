"""The anthropic SDK against a server process."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import pytest
from pydantic import BaseModel
from server_process import Server

USER: list[Any] = [{"role": "user", "content": "Tell me about rain."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"town": {"enum": ["Ur", "Bath"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["town", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"name": "weather", "description": "Of a town.", "input_schema": SCHEMA}]


@pytest.fixture(scope="module")
def client(tool_server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=tool_server.url, api_key=tool_server.key, max_retries=0, timeout=60) as client:
        yield client


def test_messages(client: anthropic.Anthropic) -> None:
    options: Any = {"max_tokens": 12, "messages": USER, "system": "Be kind.", "stop_sequences": ["no such text"]}
    named = client.messages.create(model="demo/bone_soup@positive=1", **options, extra_body={"seed": 4})
    steering = {"steering": {"preference": {"positive": 1}}, "seed": 4}
    asked = client.messages.create(model="demo", **options, extra_body=steering)
    assert named.content == asked.content and named.role == "assistant"
    assert named.steering["preference"] == asked.steering["preference"]  # type: ignore[attr-defined]
    assert named.stop_reason in ("max_tokens", "end_turn") and 1 <= named.usage.output_tokens <= 12
    count = client.messages.count_tokens(model="demo", messages=USER, system="Be kind.")
    assert count.input_tokens == asked.usage.input_tokens + (asked.usage.cache_read_input_tokens or 0)


def test_a_stream_is_the_whole_answer(client: anthropic.Anthropic) -> None:
    options: Any = {"model": "demo", "max_tokens": 24, "messages": USER, "extra_body": {"seed": 5, "ignore_eos": True}}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "".join(block.text for block in whole.content if block.type == "text") and text
    assert len(final.content) == len(whole.content) and final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_tools(client: anthropic.Anthropic) -> None:
    options: Any = {"model": "demo@positive=1", "max_tokens": 200, "tools": TOOLS}
    first = client.messages.create(messages=USER, tool_choice={"type": "tool", "name": "weather"}, **options)
    (use,) = first.content
    assert first.stop_reason == "tool_use" and use.type == "tool_use" and use.name == "weather"
    jsonschema.validate(use.input, SCHEMA)
    once: Any = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(messages=USER, tool_choice=once, **options) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert final.content[0].type == "tool_use" and final.stop_reason == "tool_use" and pieces
    jsonschema.validate(final.content[0].input, SCHEMA)
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "wet"}
    told: Any = [*USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(messages=told, **{**options, "max_tokens": 8}, tool_choice={"type": "none"})
    assert answer.stop_reason in ("max_tokens", "end_turn")


class Rain(BaseModel):
    wet: bool
    days: int


def test_forms(client: anthropic.Anthropic) -> None:
    parsed = client.messages.parse(model="demo", max_tokens=400, messages=USER, output_format=Rain)
    text = parsed.content[0]
    assert text.type == "text" and isinstance(json.loads(text.text)["wet"], bool)
    assert isinstance(parsed.parsed_output, Rain)


def test_errors_are_the_clients_own(client: anthropic.Anthropic, tool_server: Server) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(
            model="demo", max_tokens=9, messages=USER, thinking={"type": "enabled", "budget_tokens": 5}
        )
    assert bad.value.type == "invalid_request_error" and "thinking" in bad.value.message and bad.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude-x", max_tokens=9, messages=USER)
    with (
        anthropic.Anthropic(base_url=tool_server.url, api_key="another", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="demo", max_tokens=9, messages=USER)


def test_a_stream_that_is_left_frees_its_lanes(client: anthropic.Anthropic, tool_server: Server) -> None:
    endless: Any = {"steering": {"preference": {"positive": 1}}, "ignore_eos": True}
    with (
        tool_server.abandoned(),
        client.messages.stream(model="demo", max_tokens=8000, messages=USER, extra_body=endless) as stream,
    ):
        next(iter(stream))
