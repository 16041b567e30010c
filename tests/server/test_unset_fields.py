"""A field that nobody knows passes at null, which says that nothing was given; at any other value it is refused by
name, with the name that was probably meant."""

from typing import Any

import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from tool_templates import HERMES_TEMPLATE

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
USER = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
FUNCTION = {"name": "now", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}}
STEERING = {
    "preference": {"positive": 1},
    "monitor": {"ask": "Is it rude?", "above": 0.5},
    "schedule": [{"until": 2, "preference": {"positive": 1}}, {"preference": {"simple": 1}}],
}
OPEN = frozenset({"parameters", "input_schema", "schema", "preference", "metadata", "input", "chat_template_kwargs"})
"""Objects whose keys are no fields."""
BODIES: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "messages": [
                *USER,
                {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "now"}}]},
                {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "noon"}]},
                *USER,
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]},
            },
            "response_format": {"type": "text"},
            "stream_options": {"include_usage": True},
            "stream": True,
            "steering": STEERING,
            "extra_body": {},
        },
    ),
    ("/v1/chat/completions", {"messages": USER, "steering": {"method": "bone_soup", "preference": {"simple": 1}}}),
    ("/v1/completions", {"prompt": "Hi", "stream_options": {}, "stream": True}),
    (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "a", "name": "now", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "noon"}]},
            ],
            "tools": [
                {"type": "function", **FUNCTION},
                {"type": "namespace", "name": "clock", "tools": [{"type": "function", **FUNCTION}]},
            ],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]},
            "text": {"format": {"type": "text"}},
            "stream_options": {},
        },
    ),
    (
        "/v1/messages",
        {
            "model": "tiny",
            "max_tokens": 9,
            "system": [{"type": "text", "text": "Be kind."}],
            "messages": [
                *USER,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "now", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "noon"}]},
            ],
            "tools": [{"name": "now", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "auto"},
        },
    ),
    ("/v1/messages/count_tokens", {"model": "tiny", "messages": USER}),
    ("/v1/generate", {"prompt": "Hi", "steering": STEERING}),
    ("/v1/coefficients", {"method": "bone_soup", "preference": {"positive": 1}}),
    ("/tokenize", {"messages": USER}),
    ("/detokenize", {"tokens": [5]}),
]  # fmt: skip


def with_unset(value: Any, **others: Any) -> Any:
    """``value`` with ``others`` in every object whose keys are fields."""
    if isinstance(value, list):
        return [with_unset(item, **others) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: item if key in OPEN and isinstance(item, dict) else with_unset(item, **others)
        for key, item in value.items()
    } | others


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_unknown_fields_that_are_null_ask_nothing(family: Family, path: str, body: dict[str, Any]) -> None:
    prompts = []
    for sent in (body, with_unset(body, nobody_knows=None), with_unset(body, **{f"n{k}": None for k in range(50)})):
        engine = FakeEngine()
        engine.max_context = 2000
        engine.tokenizer.chat_template = HERMES_TEMPLATE
        async with client_of(fake_state(family, engine)) as client:
            response = await client.post(path, json=sent)
        assert response.status_code == 200, response.text
        prompts.append([(request.prompt, request.plan.sources) for request in engine.requests])
    assert prompts[0] == prompts[1] == prompts[2]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_those_that_are_something_are_refused(family: Family, path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine()
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post(path, json={**body, "nobody_knows": None, "modle": False, "other": 0})
    message = response.json()["error"]["message"]
    assert response.status_code == 400 and not engine.requests
    meant = "" if "tokenize" in path else " (did you mean 'model'?)"
    assert message.startswith(f"modle: unknown or unsupported field{meant}") and "nobody_knows" not in message
    assert "other: unknown or unsupported field" in message


async def test_the_field_that_was_meant_is_one_of_the_object(family: Family) -> None:
    async with client_of(fake_state(family, FakeEngine())) as client:
        for slip, said in (
            (
                {"messages": [{"role": "user", "contnet": "Hi"}]},
                "messages[0].contnet: unknown or unsupported field (did",
            ),
            (
                {"messages": USER, "tools": [{"type": "function", "function": {"nmae": "now"}}]},
                "(did you mean 'name'?)",
            ),
            ({"messages": USER, "response_format": {"type": "text", "schema": 1}}, "(did you mean 'json_schema'?)"),
            ({"messages": USER, "steering": {"preferences": {}}}, "(did you mean 'preference'?)"),
        ):
            response = await client.post("/v1/chat/completions", json=slip)
            assert response.status_code == 400 and said in response.json()["error"]["message"], response.text
