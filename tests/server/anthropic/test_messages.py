"""``POST /v1/messages`` in Anthropic's shapes, asked as it is and by the official client."""

import json
import random
import re
from typing import Any

import anthropic
import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from pydantic import BaseModel
from seeds import fresh_seed
from tool_engine import ToolEngine, call_text, some_text

from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKeys

pytestmark = pytest.mark.anyio
USER: list[Any] = [{"role": "user", "content": "Hi"}]
WEATHER = {"type": "object", "properties": {"town": {"enum": ["Ur", "Bath"]}}, "required": ["town"]}
TOOLS: list[Any] = [
    {"name": "weather", "description": "Of a town.", "input_schema": WEATHER},
    {"name": "now", "input_schema": {"type": "object"}, "type": "custom"},
]
CALL = call_text("weather", '{"town": "Ur", "days": 1.50}')


@pytest.fixture
def served(family: Family) -> ToolEngine:
    return ToolEngine(family, "/v1/messages")


@pytest.fixture
def client(served: ToolEngine) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url="http://ladle", api_key="none", http_client=served.http(), max_retries=0)


async def test_the_answer_has_anthropics_shape(served: ToolEngine) -> None:
    reply = await served.ask(messages=USER, max_tokens=60, model="tiny/bone_soup@positive=3,simple=1")
    tokens = len(served.engine.tokens(served.engine.requests[0]))
    steering = reply.pop("steering")
    assert reply.pop("id").startswith("msg_") and steering["preference"] == {"positive": 0.75, "simple": 0.25}
    prompt = len(served.engine.requests[0].prompt)
    assert reply == {
        "type": "message",
        "role": "assistant",
        "model": "tiny/bone_soup@positive=3,simple=1",
        "content": [{"type": "text", "text": "Hello, gentle rain."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt - min(16, prompt),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": min(16, prompt),
            "output_tokens": tokens,
        },
    }


async def test_the_prompt_is_that_of_a_chat(served: ToolEngine) -> None:
    rng = random.Random(fresh_seed())
    system, said, found, more = (some_text(rng) for _ in range(4))
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"town": some_text(rng)}}
    await served.ask(
        max_tokens=9,
        system=[{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}],
        tools=TOOLS,
        messages=[
            {"role": "user", "content": [{"type": "text", "text": said}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": found}]},
                    {"type": "text", "text": more},
                ],
            },
            {"role": "user", "content": "So?"},
        ],
    )
    function = {"name": "weather", "arguments": json.dumps(call["input"])}
    functions = [
        {"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": WEATHER}},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
    ]
    await served.ask(
        path="/v1/chat/completions",
        max_tokens=9,
        tools=functions,
        messages=[
            {"role": "system", "content": system},
            {"role": "user", "content": f"{said}\nb"},
            {"role": "assistant", "content": "I look.", "tool_calls": [{"id": "t1", "function": function}]},
            {"role": "tool", "tool_call_id": "t1", "content": found},
            {"role": "user", "content": f"{more}\nSo?"},
        ],
    )
    assert served.engine.requests[0].prompt == served.engine.requests[1].prompt


async def test_an_answer_that_was_begun_is_gone_on_with(served: ToolEngine) -> None:
    await served.ask(max_tokens=9, messages=[*USER, {"role": "assistant", "content": "Well, I"}])
    assert served.prompt.endswith("<|im_start|>assistant\nWell, I")
    call = {"type": "tool_use", "id": "t1", "name": "now", "input": {}}
    error = await served.ask(400, max_tokens=9, messages=[*USER, {"role": "assistant", "content": [call]}])
    assert "messages[1].content" in error["error"]["message"]


async def test_a_failed_call_says_so(served: ToolEngine) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "now", "input": {}}
    for text, shown in (("no clock", "Error: no clock"), ("Error 5", "Error 5")):
        result = {"type": "tool_result", "tool_use_id": "t1", "content": text, "is_error": True}
        history = [*USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        await served.ask(max_tokens=9, messages=history)
        assert f"<|im_start|>tool\n{shown}<|im_end|>" in served.prompt


async def test_why_an_answer_ended(served: ToolEngine) -> None:
    cut = await served.ask(messages=USER, max_tokens=3)
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("max_tokens", None)
    stopped = await served.ask(messages=USER, max_tokens=60, stop_sequences=["xyz", "gentle"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "gentle")
    assert stopped["content"] == [{"type": "text", "text": "Hello, "}]
    served.says = f"Sure. {CALL}{CALL}"
    both = await served.ask(messages=USER, max_tokens=300, tools=TOOLS)
    assert both["stop_reason"] == "tool_use" and [block["type"] for block in both["content"]] == [
        "text",
        "tool_use",
        "tool_use",
    ]
    # The end of the only call is no sequence of the client's.
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    one = await served.ask(messages=USER, max_tokens=300, tools=TOOLS, tool_choice=choice)
    assert (one["stop_reason"], one["stop_sequence"]) == ("tool_use", None) and len(one["content"]) == 2
    none = await served.ask(messages=USER, max_tokens=300, tools=TOOLS, tool_choice={"type": "none"})
    assert none["stop_reason"] == "end_turn" and "<tools>" not in served.prompt
    assert none["content"][0]["text"] == served.says


async def test_a_stream_is_the_whole_answer(served: ToolEngine) -> None:
    rng = random.Random(fresh_seed())
    for says in (f"{some_text(rng)}x", CALL, f"Sure.\n{CALL}\n{CALL}", ""):
        served.says = says
        body = {"messages": USER, "max_tokens": 400, "tools": TOOLS}
        whole = await served.ask(**body)
        events = await served.ask(**body, stream=True)
        kinds = [event["type"] for event in events]
        assert kinds[:2] == ["message_start", "ping"] and kinds[-2:] == ["message_delta", "message_stop"]
        assert events[0]["message"]["stop_reason"] is None and events[0]["message"]["content"] == []
        blocks: list[dict] = []
        for event in events[2:-2]:
            if event["type"] == "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                key, piece = ("text", "text") if delta["type"] == "text_delta" else ("json", "partial_json")
                blocks[event["index"]][key] += delta[piece]
            else:
                assert event["type"] == "content_block_stop" and event["index"] == len(blocks) - 1
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(whole["content"])
        for block, expected in zip(blocks, whole["content"], strict=True):
            assert block["type"] == expected["type"]
            if block["type"] == "text":
                assert block["text"] == expected["text"]
            else:
                assert json.loads(block["json"]) == expected["input"] and block["name"] == expected["name"]
        assert events[-2]["usage"] == whole["usage"] and events[-2]["steering"] == whole["steering"]
        assert events[-2]["delta"] == {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}


async def test_a_call_that_was_cut_is_as_much_as_came(served: ToolEngine) -> None:
    served.says = CALL[: CALL.index(" 1.50")] + " 1"
    choice = {"type": "tool", "name": "weather"}
    reply = await served.ask(messages=USER, max_tokens=300, tools=TOOLS, tool_choice=choice)
    (block,) = reply["content"]
    assert block["name"] == "weather" and block["input"].items() >= {"town": "Ur"}.items()
    served.says = call_text("now", '{"a": [1e999, -1e999]}')
    reply = await served.ask(messages=USER, max_tokens=300, tools=TOOLS, tool_choice={"type": "any"})
    assert reply["content"][0]["input"]["a"] == pytest.approx([1.7976931348623157e308, -1.7976931348623157e308])


@pytest.mark.parametrize("arguments", ['{"a": 1e999}', '{"a":' * 300 + "1" + "}" * 300, '{"a": ' + "9" * 5000 + "}"])
async def test_calls_of_the_models_own_that_nobody_could_send_back_are_text(served: ToolEngine, arguments: str) -> None:
    served.says = call_text("now", arguments)
    served.engine.max_context = 20_000
    reply = await served.ask(messages=USER, max_tokens=15_000, tools=TOOLS)
    assert reply["content"] == [{"type": "text", "text": served.says}] and reply["stop_reason"] == "end_turn"


async def test_a_schema_is_compiled_for_the_answer(served: ToolEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"format": {"type": "json_schema", "schema": schema}, "effort": "high"}
    await served.ask(messages=USER, max_tokens=9, output_config=form)
    assert served.engine.requests[-1].grammar is not None
    await served.ask(messages=USER, max_tokens=9)
    assert served.engine.requests[-1].grammar is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 5}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display"),
        ({"compaction": {"type": "auto"}}, "compaction"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}], "tool_choice": {"type": "any"}}, "tools[0].inp"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"oops": 1}}}}, "output_config.format.schema"),
        ({"stop_sequences": [5]}, "stop_sequences"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"n": 2}, "n"),
        ({"steering": {"preference": {"happy": 1}}}, "steering.preference.happy"),
    ],
)
async def test_what_is_refused_is_named(served: ToolEngine, body: dict[str, Any], field: str) -> None:
    full = {"messages": USER, **({"max_tokens": 9} if body else {}), **body}
    reply = await served.ask(400, **full)
    assert set(reply) == {"type", "error", "request_id"} and reply["type"] == "error"
    assert reply["error"]["type"] == "invalid_request_error" and reply["error"]["message"].startswith(field)


async def test_what_changes_nothing_passes(served: ToolEngine) -> None:
    whatever: dict[str, Any] = {
        "metadata": {"user_id": "u"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"},
        "thinking": {"type": "disabled"}, "mcp_servers": [], "container": None, "speed": "fast", "top_k": -1,
    }  # fmt: skip
    tools = [{**TOOLS[0], "cache_control": {}, "strict": True, "eager_input_streaming": True, "defer_loading": False}]
    history = [*USER, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}, *USER]
    await served.ask(messages=history, max_tokens=9, tools=tools, **whatever)
    await served.ask(messages=history, max_tokens=9, tools=TOOLS[:1])
    # Where the family has no tags around thoughts, a thought of the model's own choice is nothing that is asked for.
    await served.ask(
        messages=history, max_tokens=9, tools=TOOLS[:1], thinking={"type": "adaptive", "display": "summarized"}
    )
    assert served.engine.requests[1].prompt == served.engine.requests[2].prompt
    assert served.engine.requests[0].prompt == served.engine.requests[1].prompt


async def test_an_overflow_is_told_in_the_words_that_clients_read(served: ToolEngine) -> None:
    """Agents of Anthropic's take the numbers out of these sentences, to shorten the conversation or the answer."""
    fits = await served.ask(messages=USER, max_tokens=9)
    prompt = sum(fits["usage"][name] for name in ("input_tokens", "cache_read_input_tokens"))
    told = (await served.ask(400, messages=USER, max_tokens=3000))["error"]["message"]
    assert f"input length and `max_tokens` exceed context limit: {prompt} + 3000 > 3000" in told
    long = [{"role": "user", "content": "rain " * 4000}]
    told = (await served.ask(400, messages=long, max_tokens=9))["error"]["message"]
    found = re.search(r"prompt is too long: (\d+) tokens > 3000 maximum", told)
    assert found is not None and int(found[1]) >= 3000


async def test_a_search_beside_functions_is_passed_over(served: ToolEngine) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5, "user_location": {"city": "Ur"}}
    for tools in (TOOLS, [search, *TOOLS], [*TOOLS, search]):
        await served.ask(messages=USER, max_tokens=9, tools=tools)
        await served.ask(messages=USER, max_tokens=9, tools=tools, tool_choice={"type": "any"})
    assert len({request.prompt for request in served.engine.requests}) == 1
    named = {"type": "tool", "name": "web_search"}
    told = await served.ask(400, messages=USER, max_tokens=9, tools=[*TOOLS, search], tool_choice=named)
    assert told["error"]["message"].startswith("tool_choice.name: ")


async def test_errors_of_all_kinds_have_anthropics_envelope(family: Family) -> None:
    served = ToolEngine(family, "/v1/messages", max_body_bytes=4000)
    body = {"messages": USER, "max_tokens": 9}
    kinds = [
        (404, "not_found_error", {**body, "model": "claude"}, None),
        (413, "request_too_large", {**body, "system": "a" * 5000}, None),
        (404, "not_found_error", body, "/v1/messages/batches"),
    ]
    for status, kind, sent, path in kinds:
        reply = await served.ask(status, path=path, **sent)
        assert (reply["type"], reply["error"]["type"]) == ("error", kind) and reply["request_id"]
    served.engine.capacity = 0
    assert (await served.ask(429, **body))["error"]["type"] == "rate_limit_error"
    served.engine.capacity, served.engine.fail_after = None, 0
    assert (await served.ask(500, **body))["error"]["type"] == "api_error"
    served.state.keys = ApiKeys.of("right")
    for headers, status in (({"x-api-key": "wrong"}, 401), ({}, 401)):
        reply = await served.ask(status, headers=headers, **body)
        assert reply["error"]["type"] == "authentication_error"
    served.engine.fail_after = None
    assert await served.ask(headers={"x-api-key": "right", "anthropic-version": "2023-06-01"}, **body)
    # Neighbours keep OpenAI's.
    assert "param" in (await served.ask(401, path="/v1/chat/completions", messages=USER))["error"]


async def test_a_stream_that_fails_ends_with_an_error_event(served: ToolEngine) -> None:
    served.engine.fail_after = 3
    events = await served.ask(messages=USER, max_tokens=60, stream=True)
    assert events[-1]["type"] == "error" and events[-1]["error"]["type"] == "api_error"
    assert "message_stop" not in [event["type"] for event in events]


async def test_a_silent_stream_pings(family: Family) -> None:
    served = ToolEngine(family, "/v1/messages", keep_alive_seconds=0.05)
    served.engine.hold_after = 2
    from asgi import Call, app_of, wait_until

    body = json.dumps({"messages": USER, "max_tokens": 60, "stream": True}).encode()
    call = Call(app_of(served.state), "/v1/messages", body)
    await wait_until(lambda: call.body.count(b"event: ping\ndata: {") >= 3)
    call.leave()
    await call.task
    assert not served.engine.running


async def test_tokens_are_counted_as_they_are_generated_from(served: ToolEngine) -> None:
    body = {"messages": USER, "system": "Be kind.", "tools": TOOLS}
    counted = await served.ask(path="/v1/messages/count_tokens", **body)
    asked = len(served.engine.requests)
    await served.ask(**body, max_tokens=5)
    assert asked == 0 and counted == {"input_tokens": len(served.engine.requests[0].prompt)}
    # A whole request may be counted: how long its answer may be asks nothing about the prompt.
    whole = {**body, "max_tokens": 5, "stop_sequences": ["x"], "temperature": 0.5, "stream": True}
    async with client_of(served.state) as client:
        assert (await client.post("/v1/messages/count_tokens", json=whole)).json() == counted
    error = await served.ask(400, path="/v1/messages/count_tokens", messages=USER, n=5)
    assert error["error"]["message"].startswith("n")


async def test_without_tools_in_the_template_they_are_refused(family: Family) -> None:
    from asgi import client_of

    async with client_of(fake_state(family, FakeEngine())) as client:
        reply = await client.post("/v1/messages", json={"messages": USER, "max_tokens": 9, "tools": TOOLS})
    assert reply.status_code == 400 and reply.json()["error"]["message"].startswith("tools")


class Rain(BaseModel):
    wet: bool
    town: str


async def test_the_official_client(served: ToolEngine, client: anthropic.AsyncAnthropic) -> None:
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 400, "messages": USER}
    steering = {"steering": {"preference": {"positive": 1}}}
    message = await client.messages.create(**options, extra_body=steering)
    assert message.content[0].text == "Hello, gentle rain." and message.usage.output_tokens  # type: ignore[union-attr]
    assert message.steering["preference"]["positive"] == 1  # type: ignore[attr-defined]
    served.says = f"Sure.\n{CALL}"
    async with client.messages.stream(**options, tools=TOOLS) as stream:
        pieces = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(pieces) == "Sure." and final.stop_reason == "tool_use"
    use = final.content[1]
    assert use.type == "tool_use" and use.input == {"town": "Ur", "days": 1.5}
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "wet"}
    told: Any = [*USER, {"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    served.says = "Take a coat."
    reply = await client.messages.create(**{**options, "messages": told}, tools=TOOLS)
    assert reply.content[0].text == "Take a coat." and "wet" in served.prompt  # type: ignore[union-attr]
    count = await client.messages.count_tokens(model="tiny", messages=told, tools=TOOLS)
    assert count.input_tokens == len(served.engine.requests[-1].prompt)
    served.says = '{"wet": true, "town": "Ur"}'
    parsed = await client.messages.parse(**options, output_format=Rain)
    assert parsed.parsed_output == Rain(wet=True, town="Ur")


async def test_the_official_clients_errors(served: ToolEngine, client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        await client.messages.create(model="tiny", max_tokens=9, messages=USER, extra_body={"temperature": 3})
    assert bad.value.type == "invalid_request_error" and "temperature" in bad.value.message
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(model="claude-opus", max_tokens=9, messages=USER)
    served.engine.fail_after = 3
    with pytest.raises(anthropic.APIStatusError):
        async with client.messages.stream(model="tiny", max_tokens=60, messages=USER) as stream:
            await stream.get_final_message()
