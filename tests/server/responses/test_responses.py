"""``POST /v1/responses`` in the shapes of OpenAI's Responses API, asked as it is and by the official client."""

import json
import random
from typing import Any

import openai
import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from pydantic import BaseModel
from seeds import fresh_seed
from tool_engine import ToolEngine, call_text, some_text

from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKeys

pytestmark = pytest.mark.anyio
PATH = "/v1/responses"
WEATHER = {"type": "object", "properties": {"town": {"enum": ["Ur", "Bath"]}}, "required": ["town"]}
TOOLS: list[Any] = [
    {"type": "function", "name": "weather", "description": "Of a town.", "parameters": WEATHER, "strict": True},
    {"type": "function", "name": "now"},
]
CALL = call_text("weather", '{"town": "Ur", "days": 1.50}')


@pytest.fixture
def served(family: Family) -> ToolEngine:
    return ToolEngine(family, PATH)


@pytest.fixture
def client(served: ToolEngine) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://ladle/v1", api_key="none", http_client=served.http(), max_retries=0)


async def test_the_answer_has_openais_shape(served: ToolEngine) -> None:
    reply = await served.ask(input="Hi", model="tiny/bone_soup@positive=3,simple=1", metadata={"a": "b"}, top_p=0.5)
    tokens, prompt = len(served.engine.tokens(served.engine.requests[0])), len(served.engine.requests[0].prompt)
    assert reply["id"].startswith("resp_") and reply["object"] == "response" and reply["status"] == "completed"
    assert reply["model"] == "tiny/bone_soup@positive=3,simple=1" and reply["error"] is None
    assert (reply["metadata"], reply["top_p"], reply["temperature"], reply["store"]) == ({"a": "b"}, 0.5, 1.0, True)
    assert reply["steering"]["preference"] == {"positive": 0.75, "simple": 0.25}
    (item,) = reply["output"]
    assert item.pop("id").startswith("msg_")
    part = {"type": "output_text", "text": "Hello, gentle rain.", "annotations": [], "logprobs": []}
    assert item == {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
    assert reply["usage"] == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": min(16, prompt), "cache_write_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + tokens,
    }


async def test_the_prompt_is_that_of_a_chat(served: ToolEngine) -> None:
    rng = random.Random(fresh_seed())
    system, said, found, more = (some_text(rng) for _ in range(4))
    arguments = json.dumps({"town": some_text(rng)})
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": arguments, "id": "fc_1"}
    other = {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "", "status": "completed"}
    await served.ask(
        max_output_tokens=9,
        instructions=system,
        tools=TOOLS,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": said}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
            },
            call,
            other,
            {"type": "function_call_output", "call_id": "c1", "output": found},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "5 pm"}]},
            {"type": "message", "role": "developer", "content": more},
        ],
    )
    functions = [
        {"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": WEATHER}},
        {"type": "function", "function": {"name": "now"}},
    ]
    calls = [
        {"id": "c1", "function": {"name": "weather", "arguments": arguments}},
        {"id": "c2", "function": {"name": "now", "arguments": "{}"}},
    ]
    await served.ask(
        path="/v1/chat/completions",
        max_tokens=9,
        tools=functions,
        messages=[
            {"role": "system", "content": system},
            {"role": "user", "content": f"{said}\nb"},
            {"role": "assistant", "content": "I look.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": found},
            {"role": "tool", "tool_call_id": "c2", "content": "5 pm"},
            {"role": "system", "content": more},
        ],
    )
    assert served.engine.requests[0].prompt == served.engine.requests[1].prompt


async def test_thoughts_reach_templates_that_show_them(family: Family) -> None:
    served = ToolEngine(family, PATH)
    served.engine.tokenizer.chat_template = (
        "{% for m in messages %}({{ m.reasoning_content }}){{ m.content }}{% endfor %}"
    )
    thought = {"type": "reasoning", "id": "r", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []}
    await served.ask(input=[thought, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "Hi"}])
    assert served.prompt == "(hm)Yes()Hi"


@pytest.mark.parametrize("logprobs", [False, True])
async def test_a_stream_is_the_whole_answer(served: ToolEngine, logprobs: bool) -> None:
    rng = random.Random(fresh_seed())
    more: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2} if logprobs else {}
    for says, most in (
        (f"{some_text(rng)}x", 400),
        (CALL, 400),
        (f"Sure.\n{CALL}\n{CALL}", 400),
        ("", 400),
        ("abc", 2),
    ):
        served.says = says
        body = {"input": "Hi", "max_output_tokens": most, "tools": TOOLS, "seed": 1, **more}
        whole = await served.ask(**body)
        events = await served.ask(**body, stream=True)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        kinds = [event["type"].removeprefix("response.") for event in events]
        assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == whole["status"]
        assert events[0]["response"]["output"] == [] and events[0]["response"]["status"] == "in_progress"
        items: list[dict] = []
        grown = ""
        for event, kind in zip(events[2:-1], kinds[2:-1], strict=True):
            assert event["output_index"] == len(items)
            if kind == "output_item.added":
                grown = ""
                assert event["item"]["status"] == "in_progress" and not event["item"].get("content")
            elif kind in ("output_text.delta", "function_call_arguments.delta"):
                grown += event["delta"]
            elif kind == "output_text.done":
                assert event["text"] == grown
            elif kind == "function_call_arguments.done":
                assert event["arguments"] == grown
            elif kind == "output_item.done":
                items.append(event["item"])
        final = events[-1]["response"]
        assert final["output"] == items and final["id"] == events[0]["response"]["id"]
        if not logprobs:  # which delta a token's stand beside depends on when text is shown
            assert bare(final) == bare(whole)
        said = [part for item in items if item["type"] == "message" for part in item["content"]]
        if said and said[0]["text"]:
            assert bool(said[0]["logprobs"]) == logprobs
        assert whole["status"] == ("incomplete" if most == 2 else "completed")


def bare(reply: dict) -> dict:
    """Without what differs from time to time."""
    output = [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in reply["output"]]
    times = {"id", "created_at", "completed_at", "output"}
    return {key: value for key, value in reply.items() if key not in times} | {"output": output}


async def test_an_answer_that_is_cut_says_so(served: ToolEngine) -> None:
    reply = await served.ask(input="Hi", max_output_tokens=3)
    assert reply["status"] == "incomplete" and reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["output"][0]["status"] == "incomplete" and reply["completed_at"] is None
    served.says = CALL[:60]
    reply = await served.ask(input="Hi", max_output_tokens=50, tools=TOOLS, tool_choice="required")
    assert reply["output"][0]["type"] == "function_call" and reply["output"][0]["status"] == "incomplete"


async def test_which_tools_may_be_called(served: ToolEngine) -> None:
    served.says = CALL
    options: dict[str, Any] = {"input": "Hi", "tools": TOOLS, "max_output_tokens": 300}
    named = await served.ask(**options, tool_choice={"type": "function", "name": "weather"})
    assert named["output"][0]["name"] == "weather" and named["tool_choice"] == {"type": "function", "name": "weather"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]}
    other = await served.ask(**options, tool_choice=allowed)
    assert other["output"][0]["type"] == "message" and "weather" not in served.prompt and "now" in served.prompt
    none = await served.ask(**options, tool_choice="none")
    assert none["output"][0]["type"] == "message" and "<tools>" not in served.prompt


async def test_forms_of_the_answer(served: ToolEngine) -> None:
    form: dict[str, Any] = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    reply = await served.ask(input="Hi", text={"format": form, "verbosity": "medium"})
    assert served.engine.requests[-1].grammar is not None and reply["text"]["format"] == {**form, "description": None}
    await served.ask(input="Hi", text={"format": {"type": "json_object"}})
    assert served.engine.requests[-1].grammar is not None
    await served.ask(input="Hi", text={"format": {"type": "text"}})
    assert served.engine.requests[-1].grammar is None


async def test_an_answer_is_gone_on_from(served: ToolEngine) -> None:
    first = await served.ask(input="Hi", instructions="Be kind.")
    served.says = CALL
    second = await served.ask(input="Rain?", previous_response_id=first["id"], tools=TOOLS, instructions="Be quick.")
    call = second["output"][0]
    served.says = "Take a coat."
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "wet"}
    for stream in (False, True):
        third = await served.ask(input=[result], previous_response_id=second["id"], stream=stream)
        third = third[-1]["response"] if stream else third
        assert third["previous_response_id"] == second["id"]
        turns = ["user\nHi", "assistant\nHello, gentle rain.", "user\nRain?", "assistant\n<tool_call>", "tool\nwet"]
        places = [served.prompt.index(f"<|im_start|>{turn}") for turn in turns]
        assert places == sorted(places) and "Be kind" not in served.prompt and '"town": "Ur"' in served.prompt
    fourth = await served.ask(input="And then?", previous_response_id=third["id"])
    assert "Take a coat." in served.prompt and fourth["output"][0]["content"][0]["text"] == "Take a coat."


async def test_items_are_named_by_reference(served: ToolEngine) -> None:
    served.says = f"Sure. {CALL}"
    reply = await served.ask(input="Hi", tools=TOOLS)
    names = [{"type": "item_reference", "id": reply["output"][0]["id"]}, {"id": reply["output"][1]["id"]}]
    result = {"type": "function_call_output", "call_id": reply["output"][1]["call_id"], "output": "wet"}
    user = {"role": "user", "content": "Hi"}
    await served.ask(input=[user, *names, result], tools=TOOLS)
    await served.ask(input=[user, *reply["output"], result], tools=TOOLS)
    assert served.engine.requests[-1].prompt == served.engine.requests[-2].prompt
    error = await served.ask(400, input=[user, {"type": "item_reference", "id": "msg_no"}])
    assert error["error"]["param"] == "input[1].id"


async def test_only_who_asked_finds_an_answer(family: Family) -> None:
    served = ToolEngine(family, PATH)
    served.state.keys = ApiKeys.of("mine", "other")
    mine, other = ({"Authorization": f"Bearer {key}"} for key in ("mine", "other"))
    reply = await served.ask(headers=mine, input="Hi")
    secret = await served.ask(headers=mine, input="Hi", store=False)
    async with client_of(served.state) as client:
        path = f"{PATH}/{reply['id']}"
        assert (await client.get(path, headers=mine)).json() == reply
        assert (await client.get(path, headers=other)).status_code == 404
        assert (await client.delete(path, headers=other)).status_code == 404
        assert (await client.get(f"{PATH}/{secret['id']}", headers=mine)).status_code == 404
        assert (await client.get(path, headers=mine, params={"stream": True})).status_code == 400
        for headers, name in ((other, reply["id"]), (mine, secret["id"])):
            error = await served.ask(400, headers=headers, input="a", previous_response_id=name)
            assert error["error"]["code"] == "previous_response_not_found"
        item = {"type": "item_reference", "id": reply["output"][0]["id"]}
        assert await served.ask(400, headers=other, input=[item])
        gone = await client.delete(path, headers=mine)
        assert gone.json() == {"id": reply["id"], "object": "response", "deleted": True}
        assert (await client.get(path, headers=mine)).status_code == 404


async def test_what_an_answer_was_asked_is_listed(served: ToolEngine) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"}
    history = [
        {"role": "user", "content": "When?"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"role": "assistant", "content": "Wait."},
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ]
    first = await served.ask(input=history, instructions="Be brief.", tools=TOOLS)
    second = await served.ask(
        input="And then?", previous_response_id=first["id"], instructions="Be brief.", tools=TOOLS
    )
    async with client_of(served.state) as client:
        path = f"{PATH}/{second['id']}/input_items"

        async def listed(**query: Any) -> dict[str, Any]:
            return (await client.get(path, params=query)).json()

        whole = await listed(order="asc", limit=100)
        assert not whole["has_more"] and [item["type"] for item in whole["data"]] == [
            "message", "reasoning", "message", "function_call", "function_call_output", "message", "message",
        ]  # fmt: skip
        assert whole["data"][-1]["content"] == [{"type": "input_text", "text": "And then?"}]
        assert (await listed())["data"] == whole["data"][::-1]
        page = await listed(order="asc", limit=2, after=whole["data"][1]["id"])
        assert page["has_more"] and page["data"] == whole["data"][2:4]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][1]["id"])
        for query, status in (({"after": "no"}, 400), ({"order": "up"}, 400), ({"limit": 0}, 400)):
            assert (await client.get(path, params=query)).status_code == status
        assert (await client.get(f"{PATH}/resp_no/input_items")).status_code == 404
    # They can be sent again as they are.
    await served.ask(input=whole["data"], instructions="Be brief.", tools=TOOLS)
    assert served.engine.requests[-1].prompt == served.engine.requests[-2].prompt


async def test_a_stream_that_fails_or_is_left_is_not_kept(served: ToolEngine) -> None:
    served.engine.fail_after = 3
    events = await served.ask(input="Hi", stream=True)
    assert events[-1]["type"] == "response.failed" and events[-1]["sequence_number"] == len(events) - 1
    failed = events[-1]["response"]
    assert failed["status"] == "failed" and failed["error"]["code"] == "server_error" and failed["output"]
    async with client_of(served.state) as client:
        assert (await client.get(f"{PATH}/{failed['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": None}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search", "name": "x"}]}, "tools[0].type"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{**TOOLS[0], "parameters": {"type": "array"}}], "tool_choice": "required"}, "tools[0].parameters"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"oops": 1}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["everything"]}, "include"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"previous_response_id": "resp_no"}, "previous_response_id"),
        ({"steering": {"preference": {"happy": 1}}}, "steering.preference.happy"),
        ({"seed": 1.5}, "seed"),
    ],
)
async def test_what_is_refused_is_named(served: ToolEngine, body: dict[str, Any], field: str) -> None:
    full = {"input": "Hi", **body} if body else body
    error = (await served.ask(400, **full))["error"]
    assert error["param"] == field and error["message"].startswith(field) and error["code"]


async def test_what_changes_nothing_passes(served: ToolEngine) -> None:
    whatever: dict[str, Any] = {
        "background": False, "service_tier": "flex", "prompt_cache_key": "k", "safety_identifier": "s", "user": "u",
        "reasoning": {"effort": "none", "summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "max_tool_calls": 3, "truncation": "disabled", "conversation": None, "context_management": [],
        "stream_options": {"include_obfuscation": False}, "image": {"detail": "low"}, "access_programs": {},
    }  # fmt: skip
    for more in (whatever, {}, {"reasoning": None, "text": None, "tools": [], "tool_choice": "auto"}):
        await served.ask(input="Hi", **more)
    assert len({request.prompt for request in served.engine.requests}) == 1


async def test_without_tools_in_the_template_they_are_refused(family: Family) -> None:
    async with client_of(fake_state(family, FakeEngine())) as client:
        reply = await client.post(PATH, json={"input": "a", "tools": TOOLS})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "tools"


class Rain(BaseModel):
    wet: bool
    town: str


async def test_the_official_client(served: ToolEngine, client: openai.AsyncOpenAI) -> None:
    steering = {"steering": {"preference": {"positive": 1}}}
    reply = await client.responses.create(model="tiny", input="Hi", extra_body=steering)
    assert reply.output_text == "Hello, gentle rain." and reply.usage is not None
    assert reply.steering["preference"]["positive"] == 1  # type: ignore[attr-defined]
    again = await client.responses.create(model="tiny", input="So?", previous_response_id=reply.id)
    assert (await client.responses.retrieve(again.id)).output_text == again.output_text
    await client.responses.delete(again.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(again.id)
    served.says = f"Sure.\n{CALL}"
    async with client.responses.stream(model="tiny", input="Hi", tools=TOOLS) as stream:
        pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(pieces) == "Sure."
    call = final.output[1]
    assert call.type == "function_call" and json.loads(call.arguments) == {"town": "Ur", "days": 1.5}
    served.says = "Take a coat."
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
    told: Any = [{"role": "user", "content": "Hi"}, *final.output, result]
    assert (await client.responses.create(model="tiny", input=told, tools=TOOLS)).output_text == "Take a coat."
    assert "wet" in served.prompt
    served.says = '{"wet": true, "town": "Ur"}'
    parsed = await client.responses.parse(model="tiny", input="Hi", text_format=Rain)
    assert parsed.output_parsed == Rain(wet=True, town="Ur")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="tiny", input="Hi", tools=[{"type": "web_search"}])
    assert refused.value.param == "tools[0].type"
