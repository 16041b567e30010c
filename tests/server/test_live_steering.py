"""Answers that are steered otherwise while they are written: by a schedule, and by a request on the way."""

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi import client_of, events_of, wait_until
from guided_requests import World

from ladle.clients import AsyncClient, BadRequestError, BegunPart, Client, NotFoundError
from ladle.server.access.api_keys import ApiKeys
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
TO_POSITIVE, TO_SIMPLE = {"positive": 1.0, "simple": 0.0}, {"positive": 0.0, "simple": 1.0}
BODY: dict[str, Any] = {"prompt": "what is good", "seed": 3, "ignore_eos": True, "max_tokens": 12}
SOUP = {"method": "rewarded_soup", "preference": TO_POSITIVE}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("guided"), random.Random(7), pblora=False)


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[Engine]:
    engine = Engine(world.family, EngineConfig(device="cpu", dtype="float32", max_lanes=20, kv_memory=8 << 20))
    engine.start()
    yield engine
    engine.shutdown()


def _state(world: World, engine: Engine, keys: ApiKeys | None = None, **settings: Any) -> ServerState:
    state = ServerState(ServerSettings(**settings), keys)
    state.publish(Serving.of(world.family, AsyncEngine(engine), engine.vocabulary))
    return state


@pytest.fixture
def state(world: World, engine: Engine) -> ServerState:
    return _state(world, engine)


async def _generate(client: httpx.AsyncClient, steering: dict[str, Any], **body: Any) -> dict[str, Any]:
    reply = await client.post("/v1/generate", json={**BODY, "steering": steering, "logprobs": True, **body})
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    return document


def _ids(choice: dict[str, Any]) -> list[int]:
    return [token["id"] for token in choice["tokens"]]


async def test_a_schedule_steers_part_by_part(state: ServerState) -> None:
    """Each part is what a request with its steering writes after the text so far; greedy, so that no draw tells."""
    schedule = [{"until": 4}, {"until": 9, "preference": TO_SIMPLE}, {"method": "cfg", "negative_prompt": "Be dull."}]
    async with client_of(state) as client:
        prompt = (await client.post("/tokenize", json={"prompt": BODY["prompt"]})).json()["tokens"]
        whole = await _generate(client, {**SOUP, "schedule": schedule}, temperature=0)
        (choice,), steering = whole["choices"], whole["steering"]
        ids = _ids(choice)
        second = await _generate(
            client, {**SOUP, "preference": TO_SIMPLE}, prompt=prompt + ids[:4], max_tokens=5, temperature=0
        )
        first = await _generate(client, SOUP, max_tokens=4, temperature=0)
        assert ids[:4] == _ids(first["choices"][0]) and ids[4:9] == _ids(second["choices"][0])
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "ignore_eos": True, "n": 2}
        told = await client.post("/v1/chat/completions", json={**chat, "steering": {**SOUP, "schedule": schedule}})
        metrics = (await client.get("/metrics")).text
    assert [part["starts"] for part in steering["parts"]] == [[0], [4], [9]]
    assert [part["method"] for part in steering["parts"]] == ["rewarded_soup", "rewarded_soup", "cfg"]
    assert steering["preference"] == steering["parts"][0]["preference"] == TO_POSITIVE
    assert steering["parts"][1]["preference"] == TO_SIMPLE
    begun = {index: token["part"] for index, token in enumerate(choice["tokens"]) if "part" in token}
    assert begun == {
        4: {"method": "rewarded_soup", "preference": TO_SIMPLE},
        9: {"method": "cfg", "preference": TO_POSITIVE},
    }
    assert [part["starts"] for part in told.json()["steering"]["parts"]] == [[0, 0], [4, 4]]
    assert 'ladle_steering_changes_total{by="schedule"} 4.0' in metrics


async def test_a_form_goes_on_through_changes(state: ServerState) -> None:
    schedule = [{"until": 3}, {"until": 12, "preference": TO_SIMPLE}, {"method": "mage", "value": "explicit"}]
    body = {"structured_outputs": {"regex": "[ab]{10}c[0-9]{10}"}, "max_tokens": 40, "ignore_eos": None}
    async with client_of(state) as client:
        reply = await _generate(client, {**SOUP, "schedule": schedule}, **body)
    assert re.fullmatch("[ab]{10}c[0-9]{10}", reply["choices"][0]["text"]), reply
    assert [part["starts"] for part in reply["steering"]["parts"]] == [[0], [3], [12]]


async def test_schedules_are_refused_by_name(world: World, engine: Engine, state: ServerState) -> None:
    few = _state(world, engine, max_steering_changes=1)
    parts = [{"until": 2}, {"until": 4}, {}]
    async with client_of(few) as client:
        reply = await client.post("/v1/generate", json={**BODY, "steering": {**SOUP, "schedule": parts}})
        assert reply.status_code == 400 and "at most 2 parts here" in reply.text
    async with client_of(state) as client:
        for path, body in (("/v1/generate", BODY), ("/v1/completions", {"prompt": "x"}), ("/v1/coefficients", {})):
            steering = {**SOUP, "schedule": [{"until": 2}, {"preference": {"rude": 1}}]}
            reply = await client.post(path, json={**body, "steering": steering})
            assert reply.status_code == 400, reply.text
            assert reply.json()["error"]["param"] == "steering.schedule.1.preference.rude"
        reply = await client.post("/v1/coefficients", json={"steering": {**SOUP, "schedule": parts}})
        assert reply.json()["error"]["param"] == "steering.schedule"


@asynccontextmanager
async def _slow_answer(
    state: ServerState, client: httpx.AsyncClient, steering: dict[str, Any], path: str = "/v1/generate", **body: Any
) -> AsyncIterator[tuple[str, asyncio.Task[httpx.Response]]]:
    """An answer on its way: the id by which it may be steered, and its stream."""
    before = set(state.live)
    long = {**BODY, "max_tokens": 400, "stream": True, "steering": steering, **body}
    if path != "/v1/generate":
        long |= {"model": state.serving.family.name if state.serving else ""}
    task = asyncio.create_task(client.post(path, json=long))
    await wait_until(lambda: set(state.live) - before)
    (name,) = set(state.live) - before
    try:
        yield name, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await wait_until(lambda: name not in state.live)


async def test_a_running_answer_is_steered(state: ServerState) -> None:
    async with client_of(state) as client, _slow_answer(state, client, SOUP, n=2) as (name, task):
        reply = await client.post(f"/v1/generate/gen-{name}/steering", json={"steering": {"preference": TO_SIMPLE}})
        told = reply.json()
        assert reply.status_code == 200 and told["steering"]["preference"] == TO_SIMPLE, reply.text
        assert told["steering"]["method"] == "rewarded_soup", "what is not named stays"
        answer = await task
        assert answer.headers["x-generation-id"] == f"gen-{name}"
        *events, last, done = events_of(answer.text)
        assert done == "[DONE]" and last["id"] == f"gen-{name}"
        assert [part["starts"] for part in last["steering"]["parts"]][1] == told["tokens"]
        assert [part["preference"] for part in last["steering"]["parts"]] == [TO_POSITIVE, TO_SIMPLE]
        for index in (0, 1):
            begun = [
                place
                for place, event in enumerate(e for e in events if e["index"] == index)
                if "part" in event["token"]
            ]
            assert begun == [told["tokens"][index]]
        metrics = (await client.get("/metrics")).text
        assert 'ladle_steering_changes_total{by="request"} 2.0' in metrics
        gone = await client.post(f"/v1/generate/gen-{name}/steering", json={"steering": {"preference": TO_SIMPLE}})
        assert gone.status_code == 404 and gone.json()["error"]["code"] == "answer_not_found"


async def test_what_cannot_be_steered_goes_on(world: World, engine: Engine) -> None:
    state = _state(world, engine, max_steering_changes=2)
    refused = {
        "steering.preference.rude": {"preference": {"rude": 1}},
        "steering.trace": {"trace": True},
        "steering.schedule": {"schedule": [{}]},
        "steering.block_length": {"method": "cd", "block_length": 4},
        "steering": {"method": "cfg", "negative_prompt": "Be dull."},
    }
    async with client_of(state) as client:
        async with _slow_answer(state, client, SOUP, max_tokens=300) as (name, task):
            path = f"/v1/generate/gen-{name}/steering"
            for field, steering in refused.items():
                reply = await client.post(path, json={"steering": steering})
                assert (reply.status_code, reply.json()["error"]["param"]) == (400, field), reply.text
            assert (await client.post(path, json={})).status_code == 400
            codes = [(await client.post(path, json={"steering": {"strength": 1.1}})).status_code for _ in range(3)]
            assert codes == [200, 200, 409]
            assert events_of((await task).text)[-1] == "[DONE]"
        blocks = {"method": "cd", "preference": TO_POSITIVE, "block_length": 2, "candidates": 2}
        async with _slow_answer(state, client, blocks) as (name, _):
            reply = await client.post(f"/v1/generate/gen-{name}/steering", json={"steering": {"strength": 2}})
            assert (reply.status_code, reply.json()["error"]["code"]) == (409, "not_steerable"), reply.text
    assert not state.live
    await wait_until(lambda: engine.stats().running == 0)


async def test_only_its_own_key_steers_an_answer(world: World, engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    secrets = ["a" * 40, "b" * 40]
    lines = [
        f"{name} sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
        for name, secret in zip(("one", "two"), secrets, strict=True)
    ]
    file.write_text("\n".join(lines) + "\n")
    state = _state(world, engine, ApiKeys.read(file))
    own, other = ({"Authorization": f"Bearer {secret}"} for secret in secrets)
    async with client_of(state, own) as client, _slow_answer(state, client, SOUP, "/v1/completions") as (name, _):
        path, change = f"/v1/generate/cmpl-{name}/steering", {"steering": {"preference": TO_SIMPLE}}
        assert (await client.post(path, json=change, headers=other)).status_code == 404
        assert (await client.post(path, json=change, headers={"Authorization": "Bearer no"})).status_code == 401
        assert (await client.post(path, json=change)).status_code == 200


def test_streams_of_the_client_are_steered(live_url: str) -> None:
    """Whoever reads a stream turns it: what is not named stays, refusals leave it as it was, and its end is told."""
    options: dict[str, Any] = {"max_tokens": 400, "seed": 3, "ignore_eos": True, "trace": True, "method": "bone_soup"}
    with (
        Client(live_url) as ladle,
        ladle.generate("Once", stream=True, preference={"positive": 1}, **options) as stream,
    ):
        assert stream.id and next(stream).token.part is None
        with pytest.raises(BadRequestError, match="rude"):
            stream.steer(preference={"rude": 1})
        change = stream.steer(preference={"simple": 3})
        assert change.steering.preference == TO_SIMPLE and change.id == stream.id
        answer = stream.result()
        parts = answer.steering.parts if answer.steering else None
        assert parts and [part.starts for part in parts] == [[0], change.tokens]
        assert answer.tokens and answer.tokens[change.tokens[0] or 0].part == BegunPart(
            method="bone_soup", preference=TO_SIMPLE
        )
        with pytest.raises(NotFoundError):
            stream.steer(preference={"positive": 1})


async def test_asynchronous_streams_are_steered(live_url: str) -> None:
    async with AsyncClient(live_url) as ladle:
        stream = await ladle.generate("Once", stream=True, preference={"positive": 1}, max_tokens=400, ignore_eos=True)
        async with stream:
            await anext(stream)
            change = await stream.steer(method="rewarded_soup")
            assert change.steering.method == "rewarded_soup" and change.steering.preference is not None
            assert (await stream.result()).steering.parts[1].starts == change.tokens  # type: ignore[union-attr,index]
