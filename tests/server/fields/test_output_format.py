"""Structured output over HTTP: every endpoint, whole and streamed, from a random model at high temperature."""

import asyncio
import json
import re
import threading
from typing import Any

import jsonschema
import openai
import pytest
from asgi import client_of, events_of, wait_until
from fake_engine import FakeEngine, fake_state
from grammar_walks import frozen_workers

from ladle.merging.family.family import Family
from ladle.server.engine.grammars import pool as grammar_pool
from ladle.server.engine.grammars.grammar import Grammar, GrammarCompiler, GrammarSpec, GrammarsUnavailable
from ladle.server.fields.json_schema_keywords import unknown_keyword
from ladle.server.state import ServerState

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("idle_after")]
USER = [{"role": "user", "content": "Tell me about rain."}]
SCHEMA: dict[str, Any] = {
    "$defs": {"town": {"type": "object", "properties": {"name": {"enum": ["Ur", "Bath"]}}, "required": ["name"]}},
    "type": "object",
    "properties": {
        "town": {"$ref": "#/$defs/town", "description": "where"},
        "days": {"type": "integer", "minimum": 1, "maximum": 31},
        "wet": {"type": "boolean", "title": "Wet", "x-note": "a note"},
        "why": {"type": "string", "maxLength": 5, "default": ""},
    },
    "required": ["town", "days", "wet", "why"],
    "additionalProperties": False,
}
SCHEMA["$defs"]["town"]["additionalProperties"] = False
FORMAT = {"type": "json_schema", "json_schema": {"name": "rain", "schema": SCHEMA, "strict": True}}
WILD = {"temperature": 1.5, "max_tokens": 400}


def body(path: str, **fields: Any) -> dict[str, Any]:
    prompt = {"messages": USER} if path == "/v1/chat/completions" else {"prompt": "the rain"}
    return {**prompt, **WILD, **fields}


def text_of(choice: dict[str, Any]) -> str:
    found = choice["message"]["content"] if "message" in choice else choice["text"]
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/generate"])
async def test_answers_fulfil_their_schema(real_state: ServerState, path: str) -> None:
    async with client_of(real_state) as client:
        reply = await client.post(path, json=body(path, response_format=FORMAT, n=3))
        assert reply.status_code == 200, reply.text
        for choice in reply.json()["choices"]:
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(text_of(choice)), SCHEMA)
        same = {"structured_outputs": {"json": SCHEMA}, "seed": 11}
        whole = (await client.post(path, json=body(path, **same))).json()
        streamed = events_of((await client.post(path, json=body(path, **same, stream=True))).text)
    if path == "/v1/generate":
        text = "".join(event["token"]["text"] for event in streamed if "token" in event)
    else:
        parts = [event["choices"][0] for event in streamed[:-1] if event["choices"]]
        text = "".join(part["delta"].get("content", "") if "delta" in part else part["text"] for part in parts)
    assert text == text_of(whole["choices"][0])
    jsonschema.validate(json.loads(text), SCHEMA)


async def test_regexes_choices_and_any_object(real_state: ServerState) -> None:
    async with client_of(real_state) as client:

        async def ask(**fields: Any) -> dict[str, Any]:
            reply = await client.post("/v1/generate", json=body("/v1/generate", **fields))
            assert reply.status_code == 200, reply.text
            choice: dict[str, Any] = reply.json()["choices"][0]
            return choice

        pattern = r"(wet|dry) in [A-Z][a-z]{2,8}\."
        assert re.fullmatch(pattern, text_of(await ask(structured_outputs={"regex": pattern})))
        choices = ["a.b", "yes|no", "line\nbreak", "back\\slash", "(q)", "ünï/#-&~"]
        seen = {text_of(await ask(structured_outputs={"choice": choices}, seed=seed)) for seed in range(12)}
        assert seen <= set(choices) and len(seen) > 1
        free = await ask(response_format={"type": "json_object"}, logit_bias={"2": 20, "0": 20})
        if free["finish_reason"] == "stop":
            assert isinstance(json.loads(text_of(free)), dict)
        cut = await ask(response_format=FORMAT, max_tokens=3)
        assert cut["finish_reason"] == "length"
        assert (await ask(response_format={"type": "text"}, max_tokens=3))["finish_reason"]


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "none"),
        ({"response_format": {**FORMAT, "type": "text"}}, "response_format.json_schema", "rain"),
        ({"response_format": {**FORMAT, "extra": 1}}, "response_format.extra", "unknown"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
            "pattern",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a"}, "response_format": FORMAT}, "structured_outputs", "stand beside"),
        ({"structured_outputs": {"regex": "[a-"}}, "structured_outputs.regex", "unclosed character class"),
        ({"structured_outputs": {"json": {"uniqueItems": True}}}, "structured_outputs.json", "uniqueItems"),
        ({"structured_outputs": {"json": {"items": {"requird": []}}}}, "structured_outputs.json.items", "requird"),
        ({"structured_outputs": {"json": {"x-guidance": {}}}}, "structured_outputs.json", "x-guidance"),
        ({"structured_outputs": {"json": {"enum": [2**53 + 1]}}}, "structured_outputs.json.enum", "an integer that"),
        ({"structured_outputs": {"json": {"items": {"not": {"const": 1}}}}}, "structured_outputs.json.items", "not"),
        # Parts that refer to other places than $defs are no fault.
        ({"structured_outputs": {"json": {"properties": {"x": {"$ref": "#/properties/y"}, "y": {}, "z": {"not": {
            "const": 1}}}}}}, "structured_outputs.json.properties.z", "Unimplemented keys"),
        ({"structured_outputs": {"json": {"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"],
            "type": "object"}}}, "structured_outputs.json.properties.a", "NoExtensionBias"),
        ({"structured_outputs": {"regex": "ab\\"}}, "structured_outputs.regex", "lone backslash"),
        ({"guided_regex": "a"}, "guided_regex", "guided_regex"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_by_name(
    family: Family, engine: FakeEngine, fields: dict[str, Any], param: str, reason: str
) -> None:
    async with client_of(fake_state(family, engine)) as client:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/generate"):
            reply = await client.post(path, json=body(path, **fields))
            assert reply.status_code == 400, reply.text
            error = reply.json()["error"]
            assert error["param"] == param and reason in error["message"], error
    assert not engine.requests


async def test_compiling_does_not_hold_up_others(
    family: Family, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(self: GrammarCompiler, spec: GrammarSpec) -> Grammar:
        begun.set()
        assert go.wait(60)
        return compile_now(self, spec)

    compile_now = GrammarCompiler.compile
    monkeypatch.setattr(GrammarCompiler, "compile", slow)
    async with client_of(fake_state(family, engine)) as client:
        waiting = asyncio.create_task(client.post("/v1/generate", json={"prompt": "a", "response_format": FORMAT}))
        await wait_until(begun.is_set)
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/v1/generate", json={"prompt": "a"})).status_code == 200
        assert not waiting.done()
        go.set()
        assert (await waiting).status_code == 200
    assert engine.requests[-1].grammar is not None and engine.requests[0].grammar is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "(a?){300}a{300}"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "((a{1,300}){300}){300}"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(a{1000}){1000}"}}, "structured_outputs.regex"),
        (
            {"structured_outputs": {"json": {"type": "string", "pattern": "^(a?){300}a{300}$"}}},
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"json": {"enum": [-(2**62)], "multipleOf": 5e-324}}}, None),
    ],
)
async def test_what_is_too_complex_is_refused_before_anything_is_written(
    real_state: ServerState, fields: dict[str, Any], param: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(real_state) as client:
        for stream in (False, True):
            reply = await client.post("/v1/generate", json={"prompt": "a", "stream": stream, **fields})
            assert reply.status_code in ((400,) if param else (200, 400)), reply.text
            if param:
                error = reply.json()["error"]
                assert error["code"] == "grammar_too_complex" and error["param"] == param, error
                assert f"{param}: refused as too complex" in caplog.text
        assert (await client.get("/health")).status_code == 200


async def test_a_schema_that_ends_its_worker_costs_one_request(
    real_state: ServerState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Our own check of numbers would see this one; others like it are not known yet.
    monkeypatch.setattr("ladle.server.fields.schema_binding.check_constant", lambda *_: None)
    deadly = {"structured_outputs": {"json": {"enum": [-9223372036854775807]}}, "prompt": "a"}
    async with client_of(real_state) as client:
        beside = asyncio.create_task(client.post("/v1/generate", json=body("/v1/generate", response_format=FORMAT)))
        replies = await asyncio.gather(*(client.post("/v1/generate", json=deadly) for _ in range(6)))
        for reply in replies:
            assert reply.status_code == 400 and reply.json()["error"]["code"] == "grammar_too_complex", reply.text
        assert (await beside).status_code == 200
    assert "SIGSEGV" in caplog.text


async def test_without_processes_for_grammars_others_are_served(
    real_state: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: object) -> None:
        raise GrammarsUnavailable("no process can be started")

    monkeypatch.setattr("ladle.server.engine.grammars.nursery.GrammarNursery.fork", none)
    async with client_of(real_state) as client:
        reply = await client.post("/v1/generate", json={"prompt": "a", "structured_outputs": {"regex": "a+"}})
        assert reply.status_code == 503 and reply.json()["error"]["code"] == "grammars_unavailable"
        assert (await client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2})).status_code == 200


async def test_a_grammar_that_becomes_too_complex_is_the_clients_fault(
    real_state: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert real_state.serving is not None
    real_state.serving.grammars.compile(GrammarSpec("regex", "a+"))
    monkeypatch.setattr(grammar_pool, "PATIENCE_S", 0.02)
    async with client_of(real_state) as client:
        with frozen_workers(real_state.serving.grammars):
            reply = await client.post("/v1/generate", json={"prompt": "a", "structured_outputs": {"regex": "a+"}})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["code"] == "grammar_too_complex"
    assert error["param"] == "structured_outputs.regex"


def test_keywords_are_looked_for_where_keywords_stand() -> None:
    names = {"properties": {"minimun": {"const": {"minimun": 1}}}, "required": ["minimun"], "default": {"minimun": 2}}
    assert unknown_keyword(names) is None
    assert unknown_keyword({"anyOf": [True, {"items": {"minimun": 1}}]}) == ("anyOf[1].items", "minimun")
    assert unknown_keyword({"$defs": {"a": {"not": {"b": 1}}}}) == ("$defs.a.not", "b")


# The client says so of its own message when it is sent back.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_official_client_parses_into_its_own_types(live_url: str) -> None:
    from pydantic import BaseModel

    class Rain(BaseModel):
        wet: bool
        days: list[bool]

    client = openai.OpenAI(base_url=f"{live_url}/v1", api_key="none", max_retries=0)
    options: Any = {"model": "tiny", "messages": USER, "temperature": 1.2, "logit_bias": {"2": 5}, "seed": 3}
    reply = client.chat.completions.parse(**options, response_format=Rain)
    assert isinstance(reply.choices[0].message.parsed, Rain)
    again: Any = [*USER, reply.choices[0].message, *USER]
    assert client.chat.completions.create(**{**options, "messages": again}, max_tokens=2).choices
    with client.chat.completions.stream(**options, response_format=Rain) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == reply.choices[0].message.parsed
    chosen = client.completions.create(
        model="tiny", prompt="Rain:", max_tokens=20, extra_body={"structured_outputs": {"choice": ["wet", "dry"]}}
    )
    assert chosen.choices[0].text in ("wet", "dry")
