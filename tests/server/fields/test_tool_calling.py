"""Calls of functions: offered, made, forced, streamed, answered; over templates of two kinds."""

import json
import random
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import openai
import pytest
from asgi import app_of, client_of, events_of
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed
from tiny_models import write_family
from tool_templates import HERMES_TEMPLATE, LLAMA_TEMPLATE

from ladle.merging.family.family import Family, load_family
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState
from ladle.server.tools.formats import HERMES, LLAMA, format_of
from ladle.server.tools.parser import Call, Part, ToolParser

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
WEATHER = {
    "type": "object",
    "properties": {
        "town": {"$ref": "#/$defs/town"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["town", "days"],
    "additionalProperties": False,
    "$defs": {"town": {"enum": ["Ur", "Bath"]}},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
USER: list[Any] = [{"role": "user", "content": "Will it rain?"}]


def check_call(call: Any) -> None:
    """A call fits its function; of the official client's types, or as JSON."""
    function = call["function"] if isinstance(call, dict) else call.function.model_dump()
    arguments = json.loads(function["arguments"])
    assert function["name"] in ("weather", "now")
    if function["name"] == "weather":
        jsonschema.validate(arguments, WEATHER)
    else:
        assert arguments == {}


class Served:
    """The double with a template that has tools; ``says`` is its next answer."""

    def __init__(self, family: Family, template: str) -> None:
        self.says = ""
        self.engine = FakeEngine(lambda _: self.says)
        self.engine.max_context = 4000
        self.engine.tokenizer.chat_template = template
        self.state = fake_state(family, self.engine)

    async def post(self, says: str = "", **fields: Any) -> Any:
        self.says = says
        async with client_of(self.state) as client:
            reply = await client.post(PATH, json={"messages": USER, "tools": TOOLS, **fields})
        if fields.get("stream"):
            return events_of(reply.text)
        return reply.json()["choices"][0] if reply.status_code == 200 else reply.json()["error"]

    @property
    def prompt(self) -> str:
        """What the model saw last."""
        return str(self.engine.tokenizer.decode(self.engine.requests[-1].prompt))


@pytest.fixture
def hermes(family: Family) -> Served:
    return Served(family, HERMES_TEMPLATE)


@pytest.fixture
def llama(family: Family) -> Served:
    return Served(family, LLAMA_TEMPLATE)


CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Ur", "days": 1.50}}\n</tool_call>'


async def test_calls_are_read_out_of_the_text(hermes: Served) -> None:
    choice = await hermes.post(f"Let me see.\n{CALL}\n{CALL}")
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Let me see."
    calls = choice["message"]["tool_calls"]
    # As the model wrote it: a number keeps its digits.
    assert [call["function"]["arguments"] for call in calls] == ['{"town": "Ur", "days": 1.50}'] * 2
    assert len({call["id"] for call in calls}) == 2 and {call["type"] for call in calls} == {"function"}
    assert '"name": "weather"' in hermes.prompt and '"name": "now"' in hermes.prompt
    alone = await hermes.post(CALL)
    assert alone["message"]["content"] is None
    plain = await hermes.post("No idea.")
    assert plain["finish_reason"] == "stop" and "tool_calls" not in plain["message"]
    assert plain["message"]["content"] == "No idea."


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "fly", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "now", "arguments": []}</tool_call> so',
        '<tool_call>{"name": "now", "arguments": {"x": NaN}}</tool_call>',
        '<tool_call>{"name": "now", "argu',
        "<tool_call>{}</tool_call>",
        "<tool_call></tool_call>",
        "a <tool_cal",
        "  <tool>  ",
    ],
)
async def test_what_is_no_call_stays_text(hermes: Served, text: str) -> None:
    choice = await hermes.post(text)
    assert choice["message"]["content"] == text and choice["finish_reason"] == "stop"
    events = await hermes.post(text, stream=True)
    pieces = [event["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert "".join(pieces) == text


async def test_tools_that_may_not_be_called_are_not_shown(hermes: Served) -> None:
    choice = await hermes.post(CALL, tool_choice="none")
    assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"
    assert "weather" not in hermes.prompt


async def test_one_call_at_a_time(hermes: Served, llama: Served) -> None:
    choice = await hermes.post(f"{CALL}\n{CALL}", parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1 and choice["finish_reason"] == "tool_calls"
    assert hermes.engine.requests[-1].sampling.stop == ("</tool_call>",)
    twice = '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}'
    assert len((await llama.post(twice))["message"]["tool_calls"]) == 2
    assert len((await llama.post(twice, parallel_tool_calls=False))["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("text", ['{"name": "now", "parameters": {}} and more', '{"a": 1}', "Well, {}", " {", "\n\n"])
async def test_json_that_is_no_call_stays_text(llama: Served, text: str) -> None:
    assert (await llama.post(text))["message"]["content"] == text
    events = await llama.post(text, stream=True)
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events[:-1]) == text


async def test_the_native_endpoint_makes_calls_too(hermes: Served) -> None:
    hermes.says = f"Let me see.\n{CALL}"
    body = {"messages": USER, "tools": TOOLS, "max_tokens": 200}
    async with client_of(hermes.state) as client:
        whole = (await client.post("/v1/generate", json=body)).json()["choices"][0]
        *tokens, last, done = events_of((await client.post("/v1/generate", json={**body, "stream": True})).text)
        refused = await client.post("/v1/generate", json={"prompt": "a", "tools": TOOLS})
        plain = (await client.post("/v1/generate", json={**body, "tool_choice": "none"})).json()["choices"][0]
    assert done == "[DONE]" and "".join(event["token"]["text"] for event in tokens) == hermes.says
    for choice in (whole, last["choices"][0]):
        assert (choice["text"], choice["finish_reason"]) == ("Let me see.", "tool_calls")
        (call,) = choice["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": '{"town": "Ur", "days": 1.50}'}
    assert plain["text"] == hermes.says and "tool_calls" not in plain
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"


async def test_a_conversation_goes_on_after_calls(hermes: Served, llama: Served) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ur"}'}}
    asked = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    told = [*asked, {"role": "tool", "tool_call_id": "call_1", "content": "wet"}]
    for served, key in ((hermes, "arguments"), (llama, "parameters")):
        choice = await served.post("Take a coat.", messages=told)
        assert choice["message"]["content"] == "Take a coat."
        assert f'"{key}": {{"town": "Ur"}}' in served.prompt and "wet" in served.prompt
    both = [*USER, {"role": "assistant", "tool_calls": [call, call]}, *told[-1:]]
    assert "one call at once" in (await llama.post("", messages=both))["message"]


def test_formats_are_told_by_the_template(hermes: Served, llama: Served) -> None:
    assert format_of(hermes.engine.tokenizer) is HERMES and format_of(llama.engine.tokenizer) is LLAMA
    other = hermes.engine.tokenizer
    for template in (None, "{{ messages }}", "{{ tools }}{{ messages }}", HERMES_TEMPLATE + "<function=x>"):
        other.chat_template = template
        assert format_of(other) is None
    other.chat_template = {"default": "{{ messages }}", "tool_use": HERMES_TEMPLATE}
    assert format_of(other) is HERMES


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [TOOLS[1], TOOLS[1]]}, "tools"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "maybe"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice.function.name"),
    ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_refused_by_name(hermes: Served, fields: dict[str, Any], param: str) -> None:
    error = await hermes.post("x", **fields)
    assert error["param"] == param and error["code"] == "invalid_value", error
    assert not hermes.engine.requests


async def test_schemas_of_forced_calls_are_checked(hermes: Served) -> None:
    unlike = {"not": {"const": 1}}
    for parameters, param in (
        ({"type": "array"}, "tools[0].function.parameters"),
        ({"type": "object", "requird": []}, "tools[0].function.parameters"),
        ({"type": "object", "properties": {"x": {"uniqueItems": True}}}, "tools[0].function.parameters.properties.x"),
        ({"properties": {"x": {"enum": [2**53 + 1]}}}, "tools[0].function.parameters.properties.x.enum"),
        ({"properties": {"x": {"anyOf": [unlike]}}}, "tools[0].function.parameters.properties.x.anyOf[0]"),
        ({"properties": {"x": {"pattern": "(?=a)b"}}}, "tools[0].function.parameters.properties.x"),
    ):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        error = await hermes.post("x", tools=tools, tool_choice="required")
        assert error["param"] == param, error
        assert "%json" not in error["message"] and "start:" not in error["message"]


async def test_schemas_of_forced_calls_may_hold_what_binds_nothing(hermes: Served) -> None:
    parameters = {"type": "object", "propertyNames": {"type": "string"}, "properties": {"x": {"format": "binary"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    await hermes.post("x", tools=tools, tool_choice="required")
    assert hermes.engine.requests[-1].grammar is not None
    # The model is shown the schema as it was sent.
    assert "propertyNames" in hermes.prompt and "binary" in hermes.prompt


@pytest.mark.parametrize("deep", [800, 3000, 20000])
async def test_calls_that_nobody_could_read_are_text(hermes: Served, llama: Served, deep: int) -> None:
    nested = '{"a": ' + "[" * deep + "]" * deep + "}"
    for style, text in (
        (HERMES, f'<tool_call>{{"name": "now", "arguments": {nested}}}</tool_call>'),
        (LLAMA, f'{{"name": "now", "parameters": {nested}}}'),
    ):
        parts = parts_of(ToolParser(style, frozenset({"now"}), True), [text])
        assert parts == [text] or (isinstance(parts[0], Call) and parts[0].arguments == nested)


@pytest.mark.parametrize(
    ("written", "given"),
    [
        (r'{"a": "\ud83d"}', r'{"a": "\ufffd"}'),
        (r'{"a": "\uDE00 \ud83d\ude00 \ud83d\ud83d"}', r'{"a": "\ufffd \ud83d\ude00 \ufffd\ufffd"}'),
        (r'{"\ud83d": "\\ud83d \\\ud83d"}', r'{"\ufffd": "\\ud83d \\\ufffd"}'),
    ],
)
async def test_calls_hold_whole_characters(hermes: Served, written: str, given: str) -> None:
    says = f'<tool_call>{{"name": "now", "arguments": {written}}}</tool_call>'
    choice = await hermes.post(says)
    call = choice["message"]["tool_calls"][0]
    assert call["function"]["arguments"] == given
    json.loads(given)["a" if "a" in given[:4] else "\ufffd"].encode()
    # It can be sent back.
    told = [*USER, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "wet"}]
    assert (await hermes.post("Good.", messages=told))["message"]["content"] == "Good."


CUT = '<tool_call>\n{"name": "weather", "arguments": {"town": "Ur", "days": 3}}\n</tool_call>'


@pytest.mark.parametrize("choice", ["required", "weather"])
async def test_a_call_that_is_cut_is_a_part_of_a_call(hermes: Served, llama: Served, choice: str) -> None:
    """Wherever the limit falls, no markup is shown as text."""
    mode: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    for served, whole in ((hermes, CUT), (llama, '{"name": "weather", "parameters": {"town": "Ur", "days": 3}}')):
        most = len(served.engine.tokenizer.encode(whole, add_special_tokens=False))
        seen = set()
        for limit in range(1, most + 1):
            options = {"tool_choice": mode, "max_tokens": limit}
            message = (said := await served.post(whole, **options))["message"]
            assert message["content"] is None, message
            events = await served.post(whole, **options, stream=True)
            deltas = [event["choices"][0]["delta"] for event in events[:-1] if event["choices"]]
            assert not any(delta.get("content") for delta in deltas)
            streamed = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
            calls = [call["function"] for call in message.get("tool_calls", ())]
            assert streamed == calls and said["finish_reason"] in ("length", "tool_calls")
            for call in calls:
                assert call["name"] == "weather"
                assert '{"town": "Ur", "days": 3}'.startswith(call["arguments"])
                seen.add(call["arguments"])
            if choice == "weather" and limit > 1:
                assert calls, "the name is known from the start"
        assert '{"town": "Ur", "days": 3}' in seen and len(seen) > 4


async def test_a_named_function_is_called_once(hermes: Served) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for options in ({}, {"parallel_tool_calls": True}):
        said = await hermes.post(f"{CUT}\n{CUT}", tool_choice=named, **options)
        assert len(said["message"]["tool_calls"]) == 1
        grammar = hermes.engine.requests[-1].grammar
        assert grammar is not None and "call*" not in grammar.spec.text and "(" not in grammar.spec.text.split("\n")[0]
    several = await hermes.post(f"{CUT}\n{CUT}", tool_choice="required")
    assert len(several["message"]["tool_calls"]) == 2


def parts_of(parser: ToolParser, pieces: list[str]) -> list[Part]:
    found: list[Part] = []
    for part in [part for piece in pieces for part in parser.push(piece)] + parser.finish():
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize("style", [HERMES, LLAMA], ids=["hermes", "llama"])
def test_where_pieces_are_cut_does_not_matter(style: Any) -> None:
    rng = random.Random(fresh_seed())
    names = frozenset({"now", "weather"})
    bare = ['{"name": "now", "parameters": {"a": "}; {"}}', '; {"parameters": {}, "name": "weather"}', " no", "{}"]
    tagged = [
        CALL,
        "\n",
        "text ",
        '<tool_call>{"name": "now", "arguments": {"a": "</tool"}}</tool_call>',
        "<tool_",
        "  ",
    ]
    for _ in range(200):
        text = "".join(rng.choices(tagged if style is HERMES else bare, k=rng.randint(1, 5)))
        whole = parts_of(ToolParser(style, names, True), [text])
        cuts = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randint(0, 8))))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert parts_of(ToolParser(style, names, True), pieces) == whole, (text, pieces)
        if not any(isinstance(part, Call) for part in whole):
            assert "".join(str(part) for part in whole) == text


@pytest.fixture(scope="module", params=["hermes", "llama"])
def random_state(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real engine over a random model whose template has tools."""
    folder: Path = write_family(
        tmp_path_factory.mktemp("tools"), "llama", fresh_seed() % 1000, max_position_embeddings=2048
    )
    template = HERMES_TEMPLATE if request.param == "hermes" else LLAMA_TEMPLATE
    (folder / "base" / "chat_template.jinja").write_text(template)
    family = load_family(folder)
    engine = Engine(family, EngineConfig(device="cpu", dtype="float32", max_sequences=8, kv_memory=4 << 20))
    engine.start()
    state = ServerState(ServerSettings())
    state.publish(Serving.of(family, AsyncEngine(engine), engine.vocabulary))
    yield state
    engine.shutdown()


async def test_a_random_model_makes_the_calls_that_it_must(random_state: ServerState) -> None:
    transport = httpx2.ASGITransport(app=app_of(random_state))
    async with httpx2.AsyncClient(transport=transport, base_url="http://ladle") as http:
        client = openai.AsyncOpenAI(base_url="http://ladle/v1", api_key="none", http_client=http, max_retries=0)
        tools = [TOOLS[1], {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
        options: Any = {"model": "tiny@positive=1", "messages": USER, "tools": tools, "temperature": 1.5}
        reply = await client.chat.completions.create(**options, tool_choice="required", n=3, parallel_tool_calls=False)
        for choice in reply.choices:
            assert choice.finish_reason == "tool_calls" and choice.message.content is None
            assert choice.message.tool_calls is not None and len(choice.message.tool_calls) == 1
            check_call(choice.message.tool_calls[0])
        named: Any = {"type": "function", "function": {"name": "weather"}}
        one = await client.chat.completions.create(**options, tool_choice=named, seed=3, parallel_tool_calls=False)
        calls = one.choices[0].message.tool_calls
        assert calls is not None and calls[0].type == "function" and calls[0].function.name == "weather"
        check_call(calls[0])
        async with client.chat.completions.stream(
            **options, tool_choice=named, seed=3, parallel_tool_calls=False
        ) as stream:
            streamed = (await stream.get_final_completion()).choices[0]
        assert streamed.finish_reason == "tool_calls" and streamed.message.tool_calls is not None
        assert streamed.message.tool_calls[0].function.arguments == calls[0].function.arguments
        # And back: what the model called, and what came of it.
        told = [*USER, one.choices[0].message, {"role": "tool", "tool_call_id": calls[0].id, "content": "wet"}]
        await client.chat.completions.create(**{**options, "messages": told}, max_tokens=3)
        # Free to answer or to call, but an answer is JSON.
        shape: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["wet", "dry"]}}}
        for seed in range(4):
            free = await client.chat.completions.create(
                **options, response_format=shape, seed=seed, parallel_tool_calls=False
            )
            message = free.choices[0].message
            if message.tool_calls:
                check_call(message.tool_calls[0])
            else:
                assert json.loads(message.content or "") in ("wet", "dry")
