"""``POST /v1/generate`` as design.md describes it."""

import pytest
from asgi import client_of, events_of
from fake_engine import FakeEngine, fake_state

from ladle.clients import AsyncClient
from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
TRACED = {"steering": {"preference": {"positive": 1}, "trace": True}}


async def post(family: Family, engine: FakeEngine, **body: object) -> dict:
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post("/v1/generate", json={"prompt": "Once", **body})
    assert response.status_code == 200, response.text
    return response.json()


async def test_answer(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, seed=12)
    assert set(reply) == {"id", "object", "model", "created", "seed", "choices", "usage", "steering"}
    assert reply["choices"] == [{"index": 0, "text": "Hello, gentle rain.", "finish_reason": "stop"}]
    assert reply["seed"] == 12 and reply["model"] == "tiny"


async def test_the_seed_that_was_drawn_gives_the_same_again(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, n=2)
    await post(family, engine, n=2, seed=reply["seed"])
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[:2] == seeds[2:]


async def test_a_trace_lists_tokens_whose_texts_are_the_text(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, **TRACED)
    tokens = reply["choices"][0]["tokens"]
    assert [token["id"] for token in tokens] == engine.tokens(engine.requests[0])
    assert "".join(token["text"] for token in tokens) == reply["choices"][0]["text"]
    always = {"id", "text", "logprob", "base_logprob", "shift", "expert"}
    traced = {"argmax_changed", "entropy", "outside", "candidate_mass", "values"}
    assert all(set(token) == always | traced for token in tokens)
    assert tokens[0]["logprob"] == -0.25 and tokens[0]["base_logprob"] == -0.5 and tokens[0]["shift"] == 0.125
    assert [source["role"] for source in reply["steering"]["sources"]] == ["merged", "reference"]


async def test_logprobs_list_tokens_without_a_trace(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, logprobs=True, top_logprobs=2)
    token = reply["choices"][0]["tokens"][0]
    assert token["base_logprob"] is None and token["shift"] is None
    assert [other["id"] for other in token["top"]] == [10, 11]
    assert [other["logprob"] for other in token["top"]] == [-0.5, -1.5]


async def test_messages_or_token_ids_instead_of_a_prompt(family: Family, engine: FakeEngine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    await post(family, engine, prompt=None, messages=messages)
    await post(family, engine, prompt=[5, 6])
    expected = engine.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(engine.requests[0].prompt) == expected
    assert engine.requests[1].prompt == (5, 6)


async def test_stream(family: Family, engine: FakeEngine) -> None:
    whole = await post(family, engine, **TRACED, n=2, seed=1)
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post(
            "/v1/generate", json={"prompt": "Once", **TRACED, "n": 2, "seed": 1, "stream": True}
        )
    *tokens, last, done = events_of(response.text)
    assert done == "[DONE]"
    for choice in whole["choices"]:
        mine = [event["token"] for event in tokens if event["index"] == choice["index"]]
        assert mine == choice["tokens"]
    assert last["choices"] == [{"index": 0, "finish_reason": "stop"}, {"index": 1, "finish_reason": "stop"}]
    assert last["usage"] == whole["usage"] and last["steering"] == whole["steering"] and last["seed"] == 1


async def test_our_own_client_understands_it(family: Family, engine: FakeEngine) -> None:
    import httpx

    from ladle.server.app import build_app

    transport = httpx.ASGITransport(app=build_app(fake_state(family, engine)))
    async with AsyncClient("http://ladle", transport=transport) as ladle:
        reply = await ladle.generate("Once", preference={"positive": 1}, trace=True)
        assert reply.text == "Hello, gentle rain." and reply.tokens is not None and reply.tokens[0].shift == 0.125
        stream = await ladle.chat("Tell me", preference={"simple": 1}, stream=True)
        assert "".join([token.text async for token in stream]) == "Hello, gentle rain."
