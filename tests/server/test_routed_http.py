"""Routed requests over HTTP: who wrote a token, in answers, streams, traces and metrics; what is refused."""

from collections.abc import Iterator

import pytest
from asgi import client_of, events_of
from routed_folder import EXPERTS, write_routed_family
from seeds import fresh_seed

from ladle.merging.family.family import Family, load_family
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
NAMES = EXPERTS[:3]
BODY = {"prompt": "what is good", "max_tokens": 12, "seed": 3, "logit_bias": {"0": -100, "2": -100}}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(write_routed_family(tmp_path_factory.mktemp("routed"), seed=fresh_seed() % 1000))


@pytest.fixture(scope="module")
def routed_engine(family: Family) -> Iterator[Engine]:
    engine = Engine(family, EngineConfig(device="cpu", dtype="float32", kv_memory=8 << 20))
    engine.start()
    yield engine
    engine.shutdown()


@pytest.fixture
def state(family: Family, routed_engine: Engine) -> ServerState:
    state = ServerState(ServerSettings())
    state.publish(Serving.of(family, AsyncEngine(routed_engine), routed_engine.vocabulary))
    state.metrics.watch(routed_engine.stats)
    return state


async def test_the_answer_says_who_wrote_it(state: ServerState) -> None:
    steering = {"method": "fusion_route", "trace": True, "preference": {"positive": 1}}
    async with client_of(state) as client:
        reply = await client.post("/v1/generate", json={**BODY, "steering": steering})
        assert reply.status_code == 200, reply.text
        document = reply.json()
        tokens = document["choices"][0]["tokens"]
        wrote = [token["expert"] for token in tokens]
        assert len(tokens) == 12 and set(wrote) <= set(NAMES)
        shares = document["steering"]["experts"]
        assert shares == {name: wrote.count(name) / 12 for name in sorted(set(wrote))}
        assert document["steering"]["routing"] == {
            "complement": 1.0, "expert_weight": 1.0, "top_experts": 1, "min_stay": 1, "threshold": None,
        }  # fmt: skip
        for token in tokens:
            assert set(token["router"]) == set(NAMES) and token["outside"] is None
            assert token["router"][token["expert"]] == max(token["router"].values())
        assert not any("fit badly" in warning for warning in document["steering"]["warnings"])
        roles = [(source["name"], source["role"]) for source in document["steering"]["sources"]]
        assert roles == [("router", "router"), *((name, "expert") for name in NAMES), ("base", "reference")]

        # The same without a trace, through the other endpoint and streamed: the shares are there all the same.
        plain = {"method": "fusion_route", "preference": {"positive": 1}}
        completion = await client.post("/v1/completions", json={**BODY, "model": "tiny", "steering": plain})
        assert completion.json()["steering"]["experts"] == shares
        streamed = await client.post("/v1/generate", json={**BODY, "steering": plain, "stream": True})
        events = events_of(streamed.text)[:-1]  # [DONE]
        assert events[-1]["steering"]["experts"] == shares
        assert [event["token"]["expert"] for event in events if "token" in event] == wrote

        metrics = (await client.get("/metrics")).text
        counted = {name: 3.0 * wrote.count(name) for name in set(wrote)}
        for name, count in counted.items():
            assert f'ladle_routed_tokens_total{{expert="{name}"}} {count}' in metrics
        for name in NAMES:  # all of them are in the bank, so none is ever late
            assert f'ladle_expert_kv_catchup_tokens_total{{expert="{name}"}} 0.0' in metrics


async def test_other_methods_have_no_experts(state: ServerState) -> None:
    async with client_of(state) as client:
        reply = await client.post("/v1/generate", json={**BODY, "steering": {"method": "base", "trace": True}})
        document = reply.json()
        assert "experts" not in document["steering"]
        assert {token["expert"] for token in document["choices"][0]["tokens"]} == {None}
        assert all("router" not in token for token in document["choices"][0]["tokens"])


@pytest.mark.parametrize(
    ("steering", "field"),
    [
        ({"method": "fusion_route", "complement": -1}, "steering.complement"),
        ({"method": "fusion_route", "expert_weight": 0}, "steering.expert_weight"),
        ({"method": "fusion_route", "top_experts": 4}, "steering.top_experts"),
        ({"method": "fusion_route", "min_stay": 2, "top_experts": 2}, "steering.min_stay"),
        ({"method": "co_llm"}, "steering.method"),  # the head has no deferral logit
        ({"method": "bone_soup", "preference": {"positive": 1}, "min_stay": 2}, "steering.min_stay"),
    ],
)
async def test_what_is_refused(state: ServerState, steering: dict[str, object], field: str) -> None:
    async with client_of(state) as client:
        reply = await client.post("/v1/generate", json={**BODY, "steering": steering})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == field, reply.text
