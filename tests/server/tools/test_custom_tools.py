"""Custom tools over both of OpenAI's APIs, asked by the official client and as they are."""

import json
import random
import re
from typing import Any

import openai
import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from grammar_walks import random_text, words
from seeds import fresh_seed
from tool_engine import ToolEngine, call_text, some_text

from ladle.clients import Generation
from ladle.merging.family.family import Family
from ladle.server.tools.parser import Call

pytestmark = pytest.mark.anyio
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
CODE: dict[str, Any] = {"name": "run", "description": "Runs Python."}
DATE = r"(?:19|20)\d\d-[01]\d|never"
USER = [{"role": "user", "content": "Hi"}]


def tool(path: str, form: Any = None) -> dict[str, Any]:
    """The tool ``run`` with a format, as the API at ``path`` spells it."""
    body = CODE if form is None else {**CODE, "format": form}
    return {"type": "custom", **body} if path == RESPONSES else {"type": "custom", "custom": body}


def regex(path: str, definition: str, syntax: str = "regex") -> dict[str, Any]:
    """A format."""
    grammar = {"syntax": syntax, "definition": definition}
    return {"type": "grammar", **grammar} if path == RESPONSES else {"type": "grammar", "grammar": grammar}


def chosen(path: str) -> dict[str, Any]:
    """The choice of ``run``."""
    return {"type": "custom", "name": "run"} if path == RESPONSES else {"type": "custom", "custom": {"name": "run"}}


def asked(path: str) -> dict[str, Any]:
    return {"input": "Hi"} if path == RESPONSES else {"messages": USER}


@pytest.fixture
def served(family: Family) -> ToolEngine:
    return ToolEngine(family, RESPONSES)


@pytest.fixture
def client(served: ToolEngine) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://ladle/v1", api_key="none", http_client=served.http(), max_retries=0)


def called(text: str) -> str:
    return call_text("run", json.dumps({"input": text}, ensure_ascii=False))


async def test_responses_call_with_a_text(served: ToolEngine, client: openai.AsyncOpenAI) -> None:
    text = some_text(random.Random(fresh_seed())).replace("<|im_end|>", "")  # which ends what the double says
    served.says = "Wait.\n" + called(text)
    options: Any = {"model": "tiny", "input": "Hi", "tools": [tool(RESPONSES), {"type": "function", "name": "now"}]}
    reply = await client.responses.create(**options)
    shown = json.loads(served.prompt[served.prompt.index('{"type"') :].partition("\n")[0])
    assert shown["function"]["name"] == "run" and shown["function"]["description"] == "Runs Python."
    assert shown["function"]["parameters"]["properties"] == {"input": {"type": "string"}}
    said, call = reply.output
    assert said.type == "message" and call.type == "custom_tool_call"
    assert (call.name, call.input) == ("run", text) and call.call_id and call.id
    assert reply.tools[0].to_dict() == {"type": "custom", **CODE, "format": {"type": "text"}}

    async with client.responses.stream(**options) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    kinds = [event.type for event in events if "custom" in event.type]
    assert kinds == ["response.custom_tool_call_input.delta", "response.custom_tool_call_input.done"]
    inputs = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    inputs += [event.input for event in events if event.type == "response.custom_tool_call_input.done"]
    assert inputs == [text, text] and final.output[1].type == "custom_tool_call" and final.output[1].input == text

    # The history shows the call as the model wrote it, whether it is sent or kept.
    served.says = "Done."
    result: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "3"}
    history: Any = [*USER, *(item.to_dict() for item in reply.output), result]
    await client.responses.create(**{**options, "input": history})
    sent = served.prompt
    going_on = await client.responses.create(**{**options, "input": [result]}, previous_response_id=reply.id)
    assert served.prompt == sent and "tool\n3<|im_end|>" in sent
    listed = await client.responses.input_items.list(going_on.id, order="asc")
    kinds = [item.type for item in listed.data]
    assert kinds == ["message", "message", "custom_tool_call", "custom_tool_call_output"]
    assert listed.data[2].input == text  # type: ignore[union-attr]


async def test_chats_call_with_a_text(served: ToolEngine, client: openai.AsyncOpenAI) -> None:
    text = some_text(random.Random(fresh_seed())).replace("<|im_end|>", "")  # which ends what the double says
    served.says = called(text)
    options: Any = {"model": "tiny", "tools": [tool(CHAT, {"type": "text"})]}
    reply = await client.chat.completions.create(messages=USER, **options)  # type: ignore[arg-type]
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "custom" and (call.custom.name, call.custom.input) == ("run", text)

    chunks = [chunk async for chunk in await client.chat.completions.create(messages=USER, stream=True, **options)]  # type: ignore[arg-type]
    deltas = [part for chunk in chunks if chunk.choices for part in chunk.choices[0].delta.tool_calls or ()]
    (sent,) = [delta.to_dict() for delta in deltas]
    assert sent["index"] == 0 and sent["type"] == "custom" and sent["custom"] == {"name": "run", "input": text}

    served.says = "Done."
    history: list[Any] = [*USER, choice.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    await client.chat.completions.create(messages=history, **options)
    as_custom = served.prompt
    function = {"name": "run", "arguments": json.dumps({"input": text})}
    history[1] = {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]}
    await client.chat.completions.create(messages=history, **options)
    assert served.prompt == as_custom


@pytest.mark.parametrize("arguments", ['{"input": 5}', '{"code": "x"}', '{"input": "x", "more": 1}', "{}", '"x"'])
async def test_what_is_no_text_is_no_call(served: ToolEngine, arguments: str) -> None:
    served.says = call_text("run", arguments)
    reply = await served.ask(path=CHAT, messages=USER, tools=[tool(CHAT)])
    assert "tool_calls" not in reply["choices"][0]["message"]


async def test_what_was_cut_is_as_much_as_came(served: ToolEngine) -> None:
    served.says = called("a b c d e f g h i j k l m n o p")
    whole = await served.ask(input="Hi", tools=[tool(RESPONSES)], tool_choice="required", store=False)
    (call,) = whole["output"]
    tokens = whole["usage"]["output_tokens"]
    reply = await served.ask(input="Hi", tools=[tool(RESPONSES)], tool_choice="required", max_output_tokens=tokens - 30)
    (cut,) = reply["output"]
    assert reply["status"] == "incomplete" and cut["status"] == "incomplete"
    assert call["input"].startswith(cut["input"]) and 0 < len(cut["input"]) < len(call["input"])


def test_every_beginning_of_a_call_has_a_beginning_of_its_input() -> None:
    text = 'a "b"\n\\ é 雨 🌧 \u2028'
    for ascii_only in (True, False):
        arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
        for end in range(len(arguments) + 1):
            assert text.startswith(Call("run", arguments[:end], cut=True, custom=True).input)
        assert Call("run", arguments, custom=True).input == text


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_pattern_holds_calls_that_must_be_made(served: ToolEngine, path: str) -> None:
    rng = random.Random(fresh_seed())
    for choice in ("required", chosen(path)):
        body = {**asked(path), "tools": [tool(path, regex(path, DATE))], "tool_choice": choice}
        await served.ask(path=path, parallel_tool_calls=False, **body)
        grammar = served.engine.requests[-1].grammar
        assert grammar is not None
        for _ in range(10):
            said = random_text(grammar, words(), rng) or ""
            found = re.fullmatch(r'<tool_call>\n\{"name": "run", "arguments": (.*)\}\n</tool_call>', said, re.DOTALL)
            assert found is not None, said
            assert re.fullmatch(DATE, json.loads(found[1])["input"]), said


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_what_is_refused_is_named(served: ToolEngine, path: str) -> None:
    place = "tools[0].format" if path == RESPONSES else "tools[0].custom.format"
    inner = place if path == RESPONSES else f"{place}.grammar"
    must = {"tool_choice": "required"}
    for form, extra, field, why in (
        (regex(path, "start: /a/", "lark"), must, f"{inner}.syntax", "regex"),
        (regex(path, "a)|(b"), must, f"{inner}.definition", "closed"),
        (regex(path, "a\\"), must, f"{inner}.definition", "closed"),
        (regex(path, "(?=a)b(?<!c)"), must, f"{inner}.definition", "cannot"),
        (regex(path, DATE), {}, place, "tool_choice required"),
        (regex(path, DATE), {"tool_choice": "auto"}, place, "tool_choice required"),
        ({"type": "json"}, {}, f"{place}.type", "text, grammar"),
        ({"type": "grammar"}, {}, inner, "required"),
    ):
        error = (await served.ask(400, path=path, **asked(path), tools=[tool(path, form)], **extra))["error"]
        assert error["param"].startswith(field) and why in error["message"], error
    # A grammar of a tool that is not offered binds nothing.
    name = {"name": "now"}
    other = {"type": "function", **(name if path == RESPONSES else {"function": name})}
    only = {"mode": "auto", "tools": [other]}
    choice = {"type": "allowed_tools", **(only if path == RESPONSES else {"allowed_tools": only})}
    await served.ask(path=path, **asked(path), tools=[tool(path, regex(path, DATE)), other], tool_choice=choice)
    choice = json.loads(json.dumps(chosen(path)).replace("run", "walk"))
    error = (await served.ask(400, path=path, **asked(path), tools=[tool(path)], tool_choice=choice))["error"]
    assert error["param"].startswith("tool_choice") and "walk" in error["message"]


async def test_our_own_client_takes_calls_back(served: ToolEngine) -> None:
    served.says = called("1 + 2")
    reply = await served.ask(path="/v1/generate", messages=USER, tools=[tool(CHAT)], seed=1)
    generation = Generation.model_validate(reply)
    (call,) = generation.tool_calls
    assert call.type == "custom" and call.custom == {"name": "run", "input": "1 + 2"} and call.function is None
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    await served.ask(path="/v1/generate", messages=[*USER, generation.message, result], tools=[tool(CHAT)])
    assert '{"input": "1 + 2"}' in served.prompt


async def test_a_base_without_tools_refuses_them(family: Family) -> None:
    async with client_of(fake_state(family, FakeEngine())) as client:
        response = await client.post(RESPONSES, json={"input": "Hi", "tools": [tool(RESPONSES)]})
    assert response.status_code == 400 and response.json()["error"]["param"] == "tools"
