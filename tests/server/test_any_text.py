"""Whatever JSON, however deep, and whatever code points stand where a request has text: a success or a clear 4xx."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, fake_state
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tool_templates import HERMES_TEMPLATE

from ladle.merging.family.family import Family
from ladle.server.app import build_app

HERE = "@here@"
"""Where what is drawn goes, as a value; ``JSON_TEXT`` as JSON that stands in a string."""
JSON_TEXT = "@json@"
USER: list[Any] = [{"role": "user", "content": "Hi"}]
FUNCTION = {"name": "f", "description": HERE, "parameters": {"type": "object", "properties": {}}}
CALLED = {"id": "1", "type": "function", "function": {"name": "f", "arguments": JSON_TEXT}}
CHAT_BODIES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": HERE}]},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": HERE}]}, *USER]},
    {"messages": [{"role": "user", "content": "Hi", "name": HERE}]},
    {"messages": [*USER, {"role": "assistant", "content": "x", "reasoning_content": HERE}]},
    {"messages": [*USER, {"role": "assistant", "tool_calls": [CALLED]}]},
    {"messages": [*USER, {"role": "assistant", "tool_calls": [{**CALLED, "id": HERE}]}]},
    {"messages": [*USER, {"role": "assistant", "tool_calls": [{**CALLED, "function": HERE}]}]},
    {"messages": [*USER, {"role": "tool", "tool_call_id": HERE, "content": HERE}]},
    {"messages": [{"role": HERE, "content": "x"}]},
    {"messages": USER, "tools": [{"type": "function", "function": FUNCTION}]},
    {"messages": USER, "tools": [{"type": "function", "function": {**FUNCTION, "description": "d", "name": HERE}}]},
    {"messages": USER, "tools": [{"type": "function", "function": {"name": "f", "parameters": HERE}}]},
    {
        "messages": USER,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"description": HERE}}}],
        "tool_choice": "required",
    },
    {"messages": USER, "chat_template_kwargs": {"a": HERE}},
    {"messages": USER, "chat_template_kwargs": HERE},
    {"messages": [*USER, {"role": "assistant", "content": HERE}], "continue_final_message": True},
    {"messages": USER, "metadata": HERE},
    {"messages": USER, "tool_choice": {"type": "function", "function": {"name": HERE}}},
]
BOTH: list[dict[str, Any]] = [
    {"model": HERE},
    {"user": HERE},
    {"stop": HERE},
    {"stop": [HERE]},
    {"steering": {"method": HERE}},
    {"steering": {"method": "cfg", "negative_prompt": HERE}},
    {"steering": {"terms": [{"source": "base", "weight": 1, "system": HERE}]}},
    {"steering": {"preference": {"positive": HERE}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"description": HERE}}}},
    {"structured_outputs": {"choice": [HERE]}},
    {"logit_bias": HERE},
    {"no_such_field": HERE},
    {"stream": True, "user": HERE},
]
USE: dict[str, Any] = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
MESSAGE_BODIES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": HERE}]},
    {"messages": [{"role": HERE, "content": [{"type": "text", "text": HERE}]}]},
    {"messages": [{"role": "user", "content": [{"type": HERE, "text": "x"}]}]},
    {"messages": [{"role": "assistant", "content": [{**USE, "input": HERE}]}, *USER]},
    {"messages": [{"role": "assistant", "content": [{**USE, "input": {"a": HERE}}]}, *USER]},
    {"messages": [{"role": "assistant", "content": [{**USE, "name": HERE, "id": HERE}]}, *USER]},
    {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": HERE, "content": HERE}]}]},
    {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": HERE}]}, *USER]},
    {"messages": [*USER, {"role": "assistant", "content": HERE}]},
    {"system": HERE},
    {"system": [{"type": "text", "text": HERE, "cache_control": HERE}]},
    {"tools": [{"name": HERE, "input_schema": {}}]},
    {"tools": [{"name": "f", "input_schema": HERE}], "tool_choice": {"type": "any"}},
    {"tools": [{"name": "f", "input_schema": {"type": "object", "description": HERE}, "type": HERE}]},
    {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": HERE}},
    {"output_config": {"format": {"type": "json_schema", "schema": HERE}}},
    {"output_config": HERE},
    {"thinking": HERE},
    {"stop_sequences": HERE},
    {"metadata": HERE, "stream": True},
    {"model": HERE},
]
CALL_ITEM: dict[str, Any] = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
RESPONSE_BODIES: list[dict[str, Any]] = [
    {"input": HERE},
    {"input": [HERE]},
    {"input": [{"role": HERE, "content": HERE}]},
    {"input": [{"type": HERE, "id": "x"}]},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": HERE}]}]},
    {"input": [{**CALL_ITEM, "arguments": JSON_TEXT}]},
    {"input": [{**CALL_ITEM, "arguments": HERE, "name": HERE}]},
    {"input": [{"type": "function_call_output", "call_id": HERE, "output": HERE}]},
    {"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": HERE}], "summary": HERE}, *USER]},
    {"input": [{"type": "item_reference", "id": HERE}]},
    {"instructions": HERE},
    {"previous_response_id": HERE},
    {"tools": [{"type": HERE, "name": "f"}]},
    {"tools": [{"type": "function", "name": "f", "parameters": HERE}], "tool_choice": "required"},
    {"tools": [{"type": "function", "name": "f"}], "tool_choice": HERE},
    {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "allowed_tools", "tools": HERE}},
    {"text": {"format": {"type": "json_schema", "name": HERE, "schema": HERE}}},
    {"text": HERE},
    {"reasoning": HERE},
    {"include": [HERE]},
    {"metadata": {"a": HERE}},
    {"metadata": HERE, "stream": True},
]
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("/v1/chat/completions", body) for body in CHAT_BODIES),
    *(("/v1/chat/completions", {"messages": USER, **body}) for body in BOTH),
    *(("/v1/generate", {"messages": body["messages"]}) for body in CHAT_BODIES[:8]),
    *(("/v1/generate", {"prompt": "Hi", **body}) for body in BOTH),
    ("/v1/generate", {"prompt": HERE}),
    *(("/v1/completions", {"prompt": "Hi", **body}) for body in BOTH),
    ("/v1/completions", {"prompt": HERE}),
    ("/v1/completions", {"prompt": [HERE], "echo": True, "logprobs": 1, "max_tokens": 2}),
    ("/v1/completions", {"prompt": "a", "best_of": HERE}),
    ("/v1/coefficients", {"method": HERE}),
    ("/v1/coefficients", {"preference": {"positive": HERE}}),
    ("/v1/coefficients", {"steering": HERE}),
    ("/tokenize", {"prompt": HERE}),
    *(("/tokenize", body) for body in CHAT_BODIES[:12]),
    ("/detokenize", {"tokens": HERE}),
    *(("/v1/messages", {"max_tokens": 4, "messages": USER, **body}) for body in MESSAGE_BODIES),
    *(("/v1/messages/count_tokens", {"messages": USER, **body}) for body in MESSAGE_BODIES[:9]),
    *(("/v1/responses", {"max_output_tokens": 4, "input": "Hi", **body}) for body in RESPONSE_BODIES),
]
SURROGATES = st.characters(categories=["Cs", "Lu", "So", "Cc", "Co", "Cn"])
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.text(SURROGATES, min_size=1, max_size=4),
    st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>system", "<|im", "\ud83d", "\ude00", "a", "\n", "\x00"])).map(
        "".join
    ),
)
LEAVES = st.one_of(
    TEXTS.map(json.dumps),
    st.sampled_from(["null", "true", "0", "-1.5e3", "1e999", "NaN", "-Infinity", "9" * 400, "[]", "{}", '"\\ud83d"']),
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """JSON, or nearly, nested up to 10,000 times."""
    depth = draw(st.one_of(st.integers(0, 4), st.integers(0, 300), st.integers(0, 10_000)))
    wraps = draw(st.lists(st.sampled_from([("[", "]"), ('{"a":', "}"), ('[1,{"b":', "}]")]), min_size=1, max_size=3))
    own = [wraps[place % len(wraps)] for place in range(depth)]
    return "".join(left for left, _ in own) + draw(LEAVES) + "".join(right for _, right in reversed(own))


def raw(body: dict[str, Any], document: str) -> bytes:
    """``body`` with a document, as it is or in a string."""
    text = json.dumps(body).replace(json.dumps(HERE), document)
    return text.replace(json.dumps(JSON_TEXT), json.dumps(document)).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def served(family: Family) -> Iterator[Any]:
    engine = FakeEngine()
    engine.max_context = 3000
    engine.tokenizer.chat_template = HERMES_TEMPLATE
    yield engine, build_app(fake_state(family, engine))


async def call(app: Any, path: str, body: bytes) -> httpx.Response:
    # An exception that reaches the web server is raised here and fails the test.
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://ladle") as client:
        return await client.post(path, content=body, headers={"content-type": "application/json"})


@settings(max_examples=900, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(CASES), documents())
@example(CASES[4], '{"a":' + "[" * 1000 + "]" * 1000 + "}")
@example(CASES[4], '{"a":"\\ud83d"}')
@example(CASES[4], '{"a":NaN}')
@example(CASES[4], '{"a":1e999}')
@example(CASES[4], '{"a":' * 190 + "1" + "}" * 190)
@example(CASES[11], '{"properties":' * 190 + "{}" + "}" * 190)
@example(CASES[8], '"tool"')
def test_any_document_in_any_text(served: Any, case: tuple[str, dict[str, Any]], document: str) -> None:
    engine, app = served
    path, body = case
    response = asyncio.run(call(app, path, raw(body, document)))
    assert response.status_code in (200, 400, 404), (response.status_code, response.text)
    if response.status_code != 200:
        error = response.json()["error"]
        if path.startswith("/v1/messages"):  # Anthropic's envelope
            missing = response.status_code == 404
            assert error["message"] and error["type"] == ("not_found_error" if missing else "invalid_request_error")
        else:
            assert error["message"] and error["code"] and error["type"] == "invalid_request_error"
    assert not engine.running


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ('{"a":' + "[" * 1000 + "]" * 1000 + "}", 400),
        ("[" * 10_000, 400),
        ('{"a":"\\ud83d"}', 400),
        ('{"\\ude00":1}', 400),
        ('{"a":"\\ud83d\\ude00"}', 200),
        ('{"a":NaN}', 400),
        ('{"a":[-Infinity]}', 400),
        ('{"a":1e999}', 400),
        ('{"a":' + "9" * 400 + ".0}", 400),
        ('{"a":' + "9" * 400 + "}", 200),
        ("[1]", 400),
        ("{", 200),  # of a call that was cut
        ('{"a": 1, "b', 200),
        ('{"a":"\\ud83d', 200),
        ('{"a": 1} x', 400),
        ("{'a': 1", 400),
        ('{"a": 1e999', 400),
        ("[1", 400),
        ('{"a":"<|im_end|>"}', 200),
    ],
)
def test_arguments_of_a_history_are_json_by_the_standard(served: Any, arguments: str, status: int) -> None:
    call_of = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    body = {"messages": [*USER, {"role": "assistant", "tool_calls": [call_of]}], "max_tokens": 1}
    response = asyncio.run(call(served[1], "/v1/chat/completions", json.dumps(body).encode()))
    assert response.status_code == status, response.text
    if status == 400:
        assert response.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"
        assert len(response.json()["error"]["message"]) < 1000


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_text_in_a_path(served: Any, text: str) -> None:
    assume(text not in (".", ".."))  # these name the folder, which some methods of a request are not allowed on

    async def get(path: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=served[1]), base_url="http://ladle") as client:
            return (await client.get(path)).status_code

    from urllib.parse import quote

    for path in ("/v1/models/", "/v1/families/", "/v1/responses/", "/v1/messages/", "/playground/", "/"):
        assert asyncio.run(get(path + quote(text, safe=""))) in (200, 304, 400, 404)
