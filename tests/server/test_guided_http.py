"""Guided methods over HTTP: every one of them at once, what traces say, views of the prompt, and what is refused."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi import client_of, events_of
from fastapi import Request
from guided_requests import World

from ladle.guidance.plan import PromptView
from ladle.guidance.registry import available
from ladle.server.access.turns import FairPool
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.fields.chat_messages import Message
from ladle.server.prompts import encode_chat, encode_prompt
from ladle.server.reader import Reader
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
PREFERENCE = {"positive": 0.6, "simple": 0.4}
NO_END = {"logit_bias": {"2": -100, "0": -100}}
OPTIONS: dict[str, dict[str, Any]] = {
    "custom": {"terms": [{"source": "base", "weight": 1}, {"source": "only-simple", "weight": 0.5}]},
    "cd": {"block_length": 3, "candidates": 2},
    "cfg": {"negative_prompt": "Be dull."},
    "mage": {"value": "both", "strength": {"implicit": 0.5, "explicit": 1.5}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return World(tmp_path_factory.mktemp("guided"), random.Random(seed))


@pytest.fixture(scope="module")
def guided_engine(world: World) -> Iterator[Engine]:
    engine = Engine(world.family, EngineConfig(device="cpu", dtype="float32", max_lanes=120, kv_memory=16 << 20))
    engine.start()
    yield engine
    engine.shutdown()


@pytest.fixture
def state(world: World, guided_engine: Engine) -> ServerState:
    state = ServerState(ServerSettings())
    state.publish(Serving.of(world.family, AsyncEngine(guided_engine), guided_engine.vocabulary))
    return state


def _steering(world: World, method: str) -> dict[str, Any]:
    steering = {"method": method, **OPTIONS.get(method, {})}
    return steering if method in ("base", "contrastive", "cfg", "custom") else {**steering, "preference": PREFERENCE}


async def _generate(client: httpx.AsyncClient, steering: dict[str, Any], **body: Any) -> dict[str, Any]:
    options = {"max_tokens": 6, "seed": 11, **NO_END, **body}
    reply = await client.post("/v1/generate", json={"prompt": "what is good", "steering": steering, **options})
    assert reply.status_code == 200, (steering, reply.text)
    document: dict[str, Any] = reply.json()
    return document


async def test_every_method_gives_the_same_alone_and_among_all_others(world: World, state: ServerState) -> None:
    methods = [name for name, (ready, _) in available(world.family).items() if ready]
    assert {"mage", "mod", "genarm", "parm", "proxy_tuning", "dexperts", "contrastive", "cfg", "pad", "args", "fudge",
            "cd", "vas", "custom"} <= set(methods)  # fmt: skip
    async with client_of(state) as client:
        alone = [await _generate(client, _steering(world, name)) for name in methods]
        together = await asyncio.gather(*(_generate(client, _steering(world, name)) for name in methods))
    for name, one, other in zip(methods, alone, together, strict=True):
        assert one["choices"][0]["text"] == other["choices"][0]["text"], name
        assert one["usage"]["completion_tokens"] == 6 and one["steering"]["method"] == name


async def test_a_trace_says_what_guidance_did(world: World, state: ServerState) -> None:
    async with client_of(state) as client:
        for name in ("mage", "args", "contrastive", "mod", "cd"):
            reply = await _generate(client, {**_steering(world, name), "trace": True}, temperature=0, **NO_END)
            tokens = reply["choices"][0]["tokens"]
            assert len(tokens) == 6
            for token in tokens:
                assert token["shift"] >= 0 and token["base_logprob"] <= 0 and isinstance(token["argmax_changed"], bool)
                if name in ("mage", "args"):
                    assert set(token["values"]) == {s["name"] for s in reply["steering"]["sources"] if "head" in s}
                if name in ("mage", "args", "contrastive"):
                    assert 0 < token["candidate_mass"] <= 1 + 1e-6
            diagnostics = reply["steering"]["diagnostics"]
            assert diagnostics["tokens"] == 6
            assert diagnostics["argmax_changed"] == sum(token["argmax_changed"] for token in tokens) / 6
            assert diagnostics["mean_shift"] == pytest.approx(sum(token["shift"] for token in tokens) / 6)


async def test_openai_answers_carry_the_traced_tokens_on_request(world: World, state: ServerState) -> None:
    steering = {"method": "mage", "preference": PREFERENCE}
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "seed": 3, **NO_END}
    async with client_of(state) as client:
        plain = (await client.post("/v1/chat/completions", json={**body, "steering": steering})).json()
        assert "choices" not in plain["steering"] and "diagnostics" not in plain["steering"]
        body["steering"] = {**steering, "trace": True}
        traced = (await client.post("/v1/chat/completions", json=body)).json()
        streamed = events_of((await client.post("/v1/chat/completions", json={**body, "stream": True})).text)
        text = {"prompt": "hi", **{key: value for key, value in body.items() if key != "messages"}}
        completed = (await client.post("/v1/completions", json=text)).json()
    tokens = traced["steering"]["choices"][0]["tokens"]
    assert "".join(token["text"] for token in tokens) == traced["choices"][0]["message"]["content"]
    last = [event for event in streamed if event != "[DONE]"][-1]
    assert last["steering"]["choices"] == traced["steering"]["choices"]
    assert last["steering"]["diagnostics"]["tokens"] == 5
    assert len(completed["steering"]["choices"][0]["tokens"]) == 5


async def test_views_of_the_prompt(state: ServerState) -> None:
    serving = state.require()
    tokenizer = serving.engine.tokenizer
    reader = Reader(Request({"type": "http", "headers": []}), FairPool())
    views = (PromptView("system", "Be kind."), PromptView("prompt", "other"), PromptView("prompt", ""))
    raw = await encode_prompt(serving, reader, "hello you", views=views)
    assert [tokenizer.decode(raw.views[view], skip_special_tokens=True) for view in views[:2]] == [
        "Be kind.\n\nhello you",
        "other",
    ]
    begin = tokenizer.bos_token_id
    assert raw.views[views[2]] == ((begin,) if begin is not None else raw.ids[-1:])
    ids = await encode_prompt(serving, reader, raw.ids, views=views)
    assert ids.views[views[0]][-len(raw.ids) :] == raw.ids and raw.longest == max(map(len, raw.views.values()))
    turns = [Message(role="system", content="Be brief."), Message(role="user", content="hello")]
    chat = await encode_chat(serving, reader, turns, views)
    texts = [tokenizer.decode(chat.views[view]) for view in views]
    assert "Be kind." in texts[0] and "Be brief." not in texts[0] and "hello" in texts[0]
    assert "other" in texts[1] and "hello" not in texts[1] and "Be brief." not in texts[1]
    assert tokenizer.decode(chat.ids).endswith(texts[2]) and "hello" not in texts[2] and chat.views[views[2]]


@pytest.mark.parametrize(
    ("steering", "param"),
    [
        ({"method": "mage"}, "steering.preference"),
        ({"method": "mage", "preference": {"joyful": 1}}, "steering.preference.joyful"),
        ({"method": "mage", "preference": PREFERENCE, "value": "implied"}, "steering.value"),
        ({"method": "mage", "preference": PREFERENCE, "candidates": 5}, "steering.candidates"),
        ({"method": "vas", "preference": PREFERENCE, "candidates": 0}, "steering.candidates"),
        ({"method": "vas", "preference": PREFERENCE, "candidates": 1000}, "steering.candidates"),
        ({"method": "vas", "preference": PREFERENCE, "block_length": 4}, "steering.block_length"),
        ({"method": "cd", "preference": PREFERENCE, "block_length": 0}, "steering.block_length"),
        ({"method": "mod", "preference": PREFERENCE, "divergence": "alpha"}, "steering.alpha"),
        ({"method": "mod", "preference": PREFERENCE, "divergence": "l2"}, "steering.divergence"),
        ({"method": "custom"}, "steering.terms"),
        ({"method": "custom", "terms": [{"source": "nobody", "weight": 1}]}, "steering.terms[0].source"),
        ({"method": "custom", "terms": [{"source": "base", "weight": "1"}]}, "steering.terms[0].weight"),
        ({"method": "custom", "terms": [{"source": "base", "weight": 1, "x": 1}]}, "steering.terms[0].x"),
        ({"method": "cfg", "negative_prompt": 3}, "steering.negative_prompt"),
        ({"method": "genarm", "preference": PREFERENCE, "strength": 1e9}, "steering.strength"),
        ({"method": "genarm", "preference": PREFERENCE, "strength": {"implicit": 1}}, "steering.strength"),
    ],
)
async def test_bad_steering_is_named(state: ServerState, steering: dict[str, Any], param: str) -> None:
    async with client_of(state) as client:
        for path, body in (("/v1/generate", {"prompt": "hi"}), ("/v1/completions", {"prompt": "hi"})):
            reply = await client.post(path, json={**body, "steering": steering})
            assert reply.status_code == 400, reply.text
            error = reply.json()["error"]
            assert error["param"] == param and param in error["message"]


async def test_a_prompt_too_long_for_one_view_only_is_refused(state: ServerState) -> None:
    limit = state.require().engine.max_context
    steering = {"method": "cfg", "negative_prompt": "much too long a text to put in front " * 4}
    async with client_of(state) as client:
        body = {"prompt": [7] * (limit - 20), "max_tokens": 4, "steering": steering}
        reply = await client.post("/v1/generate", json=body)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "prompt"
        # Neither does the prompt's own limit get the blame for what the negative prompt leaves no room for.
        steering["negative_prompt"] = "much too long " * 400
        for path, body in (
            ("/v1/generate", {"prompt": "Hi"}),
            ("/v1/completions", {"prompt": "Hi"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ):
            reply = await client.post(path, json=body | {"max_tokens": 4, "steering": steering})
            error = reply.json()["error"]
            assert reply.status_code == 400 and error["param"] == "steering.negative_prompt", error
            assert "steering.negative_prompt" in error["message"]


async def test_families_say_what_they_can_do_and_why_not(tmp_path: Path, world: World, state: ServerState) -> None:
    async with client_of(state) as client:
        reply = (await client.get("/v1/families")).json()["data"][0]
        lacking = {name for name, entry in reply["methods"].items() if not entry["available"]}
        assert lacking == {"fusion_route", "co_llm", "fitted_soup"}, "it has no experts, and was not measured"
        mage = {"method": "mage", "preference": PREFERENCE}
        coefficients = (await client.post("/v1/coefficients", json=mage)).json()
    assert {source["role"] for source in coefficients["sources"]} == {"merged", "guide", "reference"}
