"""How answers are drawn where a request does not say: the preset's word, the method's, the family's, the server's."""

from dataclasses import replace
from typing import Any

import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.default_sampling import FamilySampling
from ladle.merging.family.family import Family
from ladle.merging.family.manifest_tables import Sampling

pytestmark = pytest.mark.anyio

DEFAULTS = FamilySampling(
    temperature=0.5, top_k=7, repetition_penalty=1.3, methods={"base": Sampling(temperature=0, min_p=0.1)}
)


@pytest.fixture
def drawn(family: Family) -> Family:
    presets = dict(family.manifest.presets)
    presets["plain"] = presets["plain"].model_copy(update={"sampling": Sampling(temperature=0.25, top_p=0.5)})
    manifest = family.manifest.model_copy(update={"sampling": DEFAULTS, "presets": presets})
    return replace(family, manifest=manifest)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"temperature": 0.5, "top_k": 7, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.3}),
        ({"temperature": 1, "top_k": 0}, {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.3}),
        ({"repetition_penalty": 1}, {"temperature": 0.5, "repetition_penalty": 1.0}),
        ({"top_p": 0}, {"temperature": 0.0}),
        ({"steering": {"method": "base"}}, {"temperature": 0.0, "min_p": 0.1, "top_k": 7}),
        ({"dynatemp_range": 0, "dynatemp_exponent": 1, "temperature": 0}, {"dynatemp_range": 0.0}),
        ({"dynatemp_range": 0.0, "dynatemp_exponent": 1.7}, {"dynatemp_range": 0.0}),
        ({"dynatemp_exponent": 1}, {"dynatemp_range": 0.0}),
        ({"model": "tiny/base"}, {"temperature": 0.0, "min_p": 0.1}),
        ({"model": "plain"}, {"temperature": 0.25, "top_p": 0.5, "min_p": 0.1, "top_k": 7}),
        ({"model": "plain", "temperature": None}, {"temperature": 0.25}),
        # JSON repeats its quotes: a default penalty is for prose, the request's own word holds.
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"temperature": 0.5, "repetition_penalty": 1.0}),
        ({"structured_outputs": {"choice": ["a", "b"]}, "repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    ],
)
async def test_whose_word_holds(
    drawn: Family, engine: FakeEngine, body: dict[str, Any], expected: dict[str, float]
) -> None:
    async with client_of(fake_state(drawn, engine)) as client:
        asked = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 2, **body})
        assert asked.status_code == 200, asked.text
    (request,) = engine.requests
    assert {name: getattr(request.sampling, name) for name in expected} == expected


@pytest.mark.parametrize("more", [{"temperature": 0}, {"top_p": 0}, {"steering": {"method": "base"}}])
async def test_a_greedy_temperature_has_no_range(drawn: Family, engine: FakeEngine, more: dict[str, Any]) -> None:
    async with client_of(fake_state(drawn, engine)) as client:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 2, "dynatemp_range": 0.5, "dynatemp_exponent": 2}
        refused = await client.post("/v1/completions", json={**body, **more})
        asked = await client.post("/v1/completions", json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "dynatemp_range"
    assert asked.status_code == 200 and len(engine.requests) == 1
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent) == (0.5, 0.5, 2.0)


async def test_a_family_without_defaults_draws_as_openai_does(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 2})
        assert (await client.get("/v1/families/tiny")).json()["sampling"] == {}
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (1.0, 1.0, 1.0)


async def test_families_and_responses_say_what_is_in_force(drawn: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(drawn, engine)) as client:
        found = (await client.get("/v1/families/tiny")).json()
        said = (await client.post("/v1/responses", json={"model": "tiny", "input": "x", "max_output_tokens": 2})).json()
    assert found["sampling"] == {
        "temperature": 0.5, "top_k": 7, "repetition_penalty": 1.3,
        "methods": {"base": {"temperature": 0.0, "min_p": 0.1}},
    }  # fmt: skip
    assert found["presets"]["plain"]["sampling"] == {"temperature": 0.25, "top_p": 0.5}
    assert (said["temperature"], said["top_p"]) == (0.5, 1.0)
