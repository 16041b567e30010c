"""Endpoints that describe: coefficients, families, models, health, docs, metrics."""

import random
import re
import threading
from typing import Any

import numpy as np
import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from prometheus_client.parser import text_string_to_metric_families

from ladle.merging.family.family import Family
from ladle.server.http.docs_page import render
from ladle.server.settings import ServerSettings
from ladle.server.state import Phase, ServerState

pytestmark = pytest.mark.anyio


async def test_coefficients_solve_the_matrix(family: Family, engine: FakeEngine) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    mu = np.random.default_rng(seed).dirichlet([1, 1])
    body = {"model": "tiny", "method": "bone_soup", "preference": {"positive": mu[0], "simple": mu[1]}}
    async with client_of(fake_state(family, engine)) as client:
        reply = (await client.post("/v1/coefficients", json=body)).json()
    assert family.matrix is not None
    expected = np.linalg.solve(family.matrix.T, mu)
    assert list(reply["coefficients"].values()) == pytest.approx(expected, rel=1e-12)
    assert list(reply["coefficients"]) == ["bone-positive", "bone-simple"]
    assert reply["base_share"] == pytest.approx(0, abs=1e-12)
    assert reply["condition"] == pytest.approx(np.linalg.cond(family.matrix))
    assert reply["l1"] == pytest.approx(np.abs(expected).sum())
    assert reply["sources"] == [
        {"name": "merged", "role": "merged", "weight": 1.0, "coefficients": reply["coefficients"]}
    ]
    assert set(reply) == {
        "method",
        "preference",
        "coefficients",
        "base_share",
        "sources",
        "condition",
        "l1",
        "warnings",
    }
    assert not engine.requests, "nothing may be generated"


async def test_coefficients_of_the_other_methods(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        body = {"model": "tiny/rewarded_soup@positive=1,simple=3"}
        reply = (await client.post("/v1/coefficients", json=body)).json()
        assert reply["coefficients"] == {"only-positive": 0.25, "only-simple": 0.75} and reply["condition"] is None
        reply = (await client.post("/v1/coefficients", json={"method": "base"})).json()
        assert reply["coefficients"] == {} and reply["base_share"] == 1.0 and reply["l1"] == 0.0


async def test_families(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        listed = (await client.get("/v1/families")).json()
        one = (await client.get("/v1/families/tiny")).json()
        missing = await client.get("/v1/families/other")
    assert listed["data"] == [one]
    assert one["objectives"] == ["positive", "simple"] and one["default_method"] == "bone_soup"
    assert np.allclose(one["matrix"], [[0.7, 0.3], [0.3, 0.7]])
    assert one["methods"]["base"] == {
        "available": True, "reason": None, "preference": "ignored", "options": [], "needs": [], "strength": None,
    }  # fmt: skip
    said = {name: (method["preference"], method["strength"]) for name, method in one["methods"].items()}
    assert said["bone_soup"] == ("required", 1.0) and said["cfg"] == ("ignored", 1.5)
    assert said["fusion_route"] == ("optional", None) and one["methods"]["custom"]["needs"] == ["terms"]
    assert one["methods"]["mage"]["options"] == [
        "base", "candidates", "coefficients", "combine", "kl_budget", "normalize", "strength", "value",
    ]  # fmt: skip
    assert [member["name"] for member in one["members"]] == list(family.kinds)
    assert all(member["kind"] in ("backbone", "policy") and member["parameters"] > 0 for member in one["members"])
    assert one["presets"]["cheerful"] == {"method": "bone_soup", "preference": {"positive": 1.0}}
    assert missing.status_code == 404 and "tiny" in missing.json()["error"]["message"]


async def test_models(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        models = (await client.get("/v1/models")).json()
        names = [model["id"] for model in models["data"]]
        assert names[0] == "tiny" and {"tiny/base", "tiny/bone_soup", "tiny/rewarded_soup", "cheerful"} <= set(names)
        assert all(set(model) == {"id", "object", "created", "owned_by", "max_model_len"} for model in models["data"])
        assert {model["max_model_len"] for model in models["data"]} == {engine.max_context}
        for name in [*names, "tiny/bone_soup@positive=.5,simple=.5"]:
            reply = await client.get(f"/v1/models/{name}")
            assert reply.status_code == 200 and reply.json()["id"] == name
            chat = await client.post("/v1/completions", json={"model": name, "prompt": "a"})
            assert chat.status_code == 200, f"{name} is listed, so it must work as it is: {chat.text}"
        unknown = await client.get("/v1/models/gpt-4")
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
        assert (await client.get("/v1/models/tiny@happy=1")).status_code == 400


async def test_health_and_readiness_through_a_life(family: Family, engine: FakeEngine) -> None:
    state = ServerState(ServerSettings())
    async with client_of(state) as client:

        async def look() -> tuple[int, int, str]:
            ready = await client.get("/ready")
            return (await client.get("/health")).status_code, ready.status_code, ready.text

        health, ready, text = await look()
        assert (health, ready) == (200, 503) and "loading" in text
        state.publish(fake_state(family, engine).require())
        assert (await look())[:2] == (200, 200)
        state.phase = Phase.DRAINING
        health, ready, text = await look()
        assert (health, ready) == (200, 503) and "draining" in text
        state.phase = Phase.READY
        engine.alive = False
        assert (await look())[:2] == (503, 503)
        state.phase = Phase.FAILED
        assert (await look())[:2] == (503, 503)


async def test_docs_are_complete_and_need_no_other_host(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        page = (await client.get("/docs")).text
        schema = (await client.get("/openapi.json")).json()
    assert "//" not in page.replace("http://www.w3.org", "") and "<script" not in page
    for path in schema["paths"]:
        assert path in page
    fields = schema["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    for name in fields:
        assert f"<code>{name}</code>" in page
    for reference in _references(schema):
        assert reference.rpartition("/")[2] in schema["components"]["schemas"], reference
    assert not any("422" in operation["responses"] for path in schema["paths"].values() for operation in path.values())


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        found = [node["$ref"]] if "$ref" in node else []
        return found + [entry for value in node.values() for entry in _references(value)]
    return [entry for value in node for entry in _references(value)] if isinstance(node, list) else []


async def test_metrics(family: Family, engine: FakeEngine) -> None:
    state = fake_state(family, engine)
    state.metrics.watch(engine.stats)
    async with client_of(state) as client:
        await client.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 4, "n": 2})
        await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 64})
        engine.capacity = 0
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 429
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in text_string_to_metric_families(response.text)
        for sample in metric.samples
        if "le" not in sample.labels
    }
    long = len(engine.tokens(engine.requests[-1]))
    assert samples["ladle_generation_tokens_total",] == 8 + long
    assert samples["ladle_prompt_tokens_total",] == 7
    assert samples["ladle_request_success_total", "length"] == 2
    assert samples["ladle_request_success_total", "stop"] == 1
    assert samples["ladle_admission_rejections_total", "queue_full"] == 1
    assert samples["ladle_time_to_first_token_seconds_count",] == 3
    assert samples["ladle_inter_token_latency_seconds_count",] == 8 + long - 3
    assert samples["ladle_e2e_request_latency_seconds_count",] == 3
    assert samples["ladle_prefix_cache_hits_total",] == 40 and samples["ladle_num_requests_running",] == 0
    assert all(name.startswith("ladle_") for name, *_ in samples)


async def test_the_page_at_docs_has_a_table_of_contents_by_group(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        page = (await client.get("/docs")).text
        paths = (await client.get("/openapi.json")).json()["paths"]
    nav = page[page.index("<nav") : page.index("</nav>")]
    links = re.findall(r'href="#([^"]+)"><code>', nav)
    assert len(links) == sum(map(len, paths.values())) == len(set(links))
    assert all(f'<section id="{link}">' in page for link in links)
    assert "<h2>Answers</h2>" in nav and "<h2>Other</h2>" not in nav and "<details open" not in page


async def test_descriptions_are_made_once_and_beside_the_event_loop(
    family: Family, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made in it, the first one held all requests up for a second."""
    made: list[int] = []

    def render_aside(document: dict[str, Any]) -> str:
        made.append(threading.get_ident())
        return render(document)

    monkeypatch.setattr("ladle.server.app.render", render_aside)
    # With settings of its own it is an application of its own, which nobody has asked yet.
    async with client_of(fake_state(family, engine, playground=False)) as client:
        for path in ("/docs", "/openapi.json") * 2:
            assert (await client.get(path)).status_code == 200
    assert len(made) == 1 and made[0] != threading.get_ident()
