"""Searches over HTTP: what comes back, what it costs, what is refused, and that nothing is left behind."""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from asgi import client_of
from guided_requests import World
from led_http import NO_END, ask, require_nothing_left, running_engine, state_of
from seeds import fresh_seed

from ladle.server.access.callers import Caller, Limits
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.live_answers import cost_of, token_cost
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
PREFERENCE = {"positive": 0.6, "simple": 0.4}
SEARCH: dict[str, Any] = {"by": "explicit", "until": 3, "draws": 3}
STEERING: dict[str, Any] = {"method": "bone_soup", "preference": PREFERENCE}
SEARCHED = {**STEERING, "search": SEARCH}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("searched"), random.Random(fresh_seed()))


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[Engine]:
    with running_engine(world.family) as engine:
        yield engine


@pytest.fixture
def state(world: World, engine: Engine) -> ServerState:
    return state_of(world.family, engine)


def _events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


async def test_answers_say_how_they_were_searched(state: ServerState) -> None:
    """Whole and streamed, traced or not, the same text; n answers are the answers to their own seeds."""
    rng = random.Random(fresh_seed())
    by = rng.choice(["explicit", "implicit", "likelihood"])
    asked = {**STEERING, "search": {**SEARCH, "by": by, "beam": rng.choice([1, 2])}}
    body = {"prompt": "what is good", "seed": rng.getrandbits(31), "max_tokens": 8, **NO_END}
    async with client_of(state) as client:
        whole = await ask(client, "/v1/generate", **body, steering=asked)
        several = await ask(client, "/v1/generate", **body, n=3, steering=asked)
        traced = await ask(client, "/v1/generate", **body, steering={**asked, "trace": True})
        stream = _events((await client.post("/v1/generate", json={**body, "steering": asked, "stream": True})).text)
        metrics = (await client.get("/metrics")).text
    text, said = whole["choices"][0]["text"], whole["steering"]["search"]
    assert several["choices"][0]["text"] == traced["choices"][0]["text"] == text
    assert len(several["choices"]) == 3 and several["usage"]["completion_tokens"] == 24
    assert "".join(event["token"]["text"] for event in stream[:-1]) == text
    assert stream[-1]["steering"]["search"] == said
    assert {key: said[key] for key in ("by", "until", "draws")} == {"by": by, "until": 3, "draws": 3}
    assert bool(said["sources"]) == (by != "likelihood")
    (spent,) = said["choices"]
    begins = [i for i, token in enumerate(traced["choices"][0]["tokens"]) if "block" in token]
    assert begins == [0, 3, 6] and spent["blocks"] == 3
    assert begins == [i for i, event in enumerate(stream[:-1]) if "block" in event["token"]]
    assert all(token["block"]["draws"] == 3 for token in (traced["choices"][0]["tokens"][i] for i in begins))
    first_round = 3 + 2 * 3 * asked["search"]["beam"]
    assert spent["draws"] == first_round and 24 <= spent["tokens"] <= 3 * first_round
    assert f'ladle_search_draws_total{{by="{by}"}}' in metrics and f'ladle_search_blocks_total{{by="{by}"}}' in metrics


async def test_openai_endpoints_and_the_client_search(state: ServerState) -> None:
    body = {"max_tokens": 7, "seed": 4, "steering": {**SEARCHED, "trace": True}, **NO_END}
    messages = [{"role": "user", "content": "hi"}]
    async with client_of(state) as client:
        chat = await ask(client, "/v1/chat/completions", messages=messages, **body)
        plain = await ask(client, "/v1/completions", prompt="hi", **body)
        native = await ask(client, "/v1/generate", messages=messages, **body)
        streamed = await client.post(
            "/v1/chat/completions", json={"messages": messages, "stream": True, "stream_options": {}, **body}
        )
    assert chat["choices"][0]["message"]["content"] == native["choices"][0]["text"]
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in _events(streamed.text) if event["choices"]]
    assert "".join(deltas) == native["choices"][0]["text"]
    for reply in (chat, plain):
        assert reply["steering"]["search"]["choices"][0]["blocks"] == 3
        assert reply["steering"]["choices"][0]["tokens"][0]["block"]["draws"] == 3


async def test_forms_and_thoughts_are_kept(state: ServerState) -> None:
    form = {"structured_outputs": {"regex": "[a-c]{4,12}"}}
    body = {"prompt": "x", "max_tokens": 14, "seed": random.getrandbits(30)}
    unsure = {"entropy": [0.1, 2.0], "most": 4}
    async with client_of(state) as client:
        for draws, beam in ((3, 1), (unsure, 2)):
            search = {"by": "likelihood", "until": 4, "draws": draws, "beam": beam}
            steering = {**STEERING, "search": search}
            reply = await ask(client, "/v1/generate", **body, **form, steering={**steering, "trace": True})
            (choice,) = reply["choices"]
            assert re.fullmatch("[a-c]{4,12}", choice["text"]), choice
            for token in choice["tokens"]:
                # Of tokens that a form allows no other beside, nobody is unsure.
                assert token.get("block", {}).get("entropy", 0.0) >= 0.0


@pytest.mark.parametrize(
    ("search", "more", "param"),
    [
        ({"by": "taste"}, {}, "steering.search.by"),
        ({"until": "dawn"}, {}, "steering.search.until"),
        ({"until": 0}, {}, "steering.search.until"),
        ({"draws": 0}, {}, "steering.search.draws"),
        ({"draws": {"entropy": [1.5, 0.1]}}, {}, "steering.search.draws.entropy"),
        ({"draws": {"entropy": [0, 1], "least": 2}}, {}, "steering.search.draws.least"),
        ({"draws": {"most": 65}}, {}, "steering.search.draws.most"),
        ({"draws": 17}, {}, "steering.search.draws"),
        ({"draws": {"most": 17}}, {}, "steering.search.draws.most"),
        ({"beam": 5}, {}, "steering.search.beam"),
        ({"beam": 17}, {}, "steering.search.beam"),
        ({"draws": 16}, {"n": 17}, "steering.search.draws"),
        ({"width": 2}, {}, "steering.search.width"),
        ({}, {"temperature": 0}, "temperature"),
        ({}, {"prompt_logprobs": 1}, "prompt_logprobs"),
        ({}, {"n": 2, "steering": {"rank": {"by": "likelihood"}}}, "steering.search"),
        ({}, {"steering": {"method": "cd", "block_length": 2}}, "steering.search"),
        ({}, {"steering": {"schedule": [{"until": 3}, {}]}}, "steering.search"),
        ({}, {"steering": {"monitor": {"value": "score-positive", "above": 1}}}, "steering.search"),
        ({}, {"steering": {"method": "base", "preference": None}}, "steering.preference"),
    ],
)
async def test_what_has_no_meaning_is_refused(
    state: ServerState, search: dict[str, Any], more: dict[str, Any], param: str
) -> None:
    rest = {key: value for key, value in more.items() if key != "steering"}
    steering = {**STEERING, **more.get("steering", {}), "search": {**SEARCH, **search}}
    async with client_of(state) as client:
        error = await ask(client, "/v1/generate", 400, prompt="a", max_tokens=4, **rest, steering=steering)
        assert error["param"] == param, error
        again = await ask(client, "/v1/generate", prompt="a", max_tokens=2, steering=STEERING)
        score = await ask(client, "/v1/score", 400, prompt="a", texts=["b"], by="explicit", steering=SEARCHED)
    assert len(again["choices"]) == 1 and score["param"] == "steering.search"


async def test_no_steering_on_the_way(state: ServerState) -> None:
    async with client_of(state) as client:
        body = {"prompt": "a", "max_tokens": 200, "steering": SEARCHED, **NO_END}
        answer = asyncio.create_task(client.post("/v1/generate", json=body))
        while not state.live:
            await asyncio.sleep(0.005)
        (name,) = state.live
        changed = await client.post(f"/v1/generate/{name}/steering", json={"steering": {"strength": 2}})
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
    assert changed.status_code == 409 and "search" in changed.json()["error"]["message"], changed.text


async def test_a_key_pays_for_what_was_drawn(world: World, engine: Engine) -> None:
    """Each drawn token costs one for what writes it and one for each value that judges it."""
    caller = Caller("key", frozenset({"generate"}), Limits(tokens_per_minute=10**6), clock=lambda: 0.0)
    before = caller._tokens
    steering = {**STEERING, "search": {**SEARCH, "beam": 2}}
    request = world.request("r", steering, world.prompts(random.Random(1)), max_tokens=9, seed=3)
    outputs = [output async for output in AsyncEngine(engine).stream(request)]
    for output in outputs:
        caller.spend(cost_of(output, token_cost(request.plan)))
    drawn = sum(output.spent.tokens for output in outputs if output.spent is not None)
    assert drawn >= 27 and before - caller._tokens == drawn * (1 + 2)
    assert request.prompt_cost == len(request.prompt) * 3


async def test_who_leaves_leaves_nothing_behind(state: ServerState, engine: Engine) -> None:
    steering = {**SEARCHED, "search": {**SEARCH, "beam": 2, "draws": {"entropy": [3, 6], "most": 6}}}
    body = {"prompt": "what", "n": 3, "max_tokens": 60, "steering": steering, **NO_END}
    async with client_of(state) as client:
        tasks = [asyncio.create_task(client.post("/v1/generate", json=body)) for _ in range(2)]
        await asyncio.sleep(random.uniform(0.01, 0.2))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reply = await ask(client, "/v1/generate", prompt="a", max_tokens=2)
    assert len(reply["choices"]) == 1
    await require_nothing_left(engine)
