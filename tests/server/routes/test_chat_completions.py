"""``POST /v1/chat/completions`` in OpenAI's shapes."""

import pytest
from asgi import client_of, events_of
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me about rain."}]


async def post(family: Family, engine: FakeEngine, **body: object) -> dict:
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post("/v1/chat/completions", json={"messages": MESSAGES, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def stream(family: Family, engine: FakeEngine, **body: object) -> list:
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


async def test_the_answer_has_openais_shape(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, model="tiny/bone_soup@positive=3,simple=1")
    assert reply["object"] == "chat.completion" and reply["id"].startswith("chatcmpl-")
    assert reply["model"] == "tiny/bone_soup@positive=3,simple=1"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, gentle rain.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt = engine.requests[0].prompt
    tokens = len(engine.tokens(engine.requests[0]))
    assert reply["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": tokens,
        "total_tokens": len(prompt) + tokens,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    assert isinstance(reply["created"], int) and reply["system_fingerprint"].startswith("fp_")


async def test_the_prompt_is_the_chat_template_of_the_messages(family: Family, engine: FakeEngine) -> None:
    await post(family, engine)
    expected = engine.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert list(engine.requests[0].prompt) == expected


async def test_developer_is_system_and_text_parts_are_joined(family: Family, engine: FakeEngine) -> None:
    parts = [{"type": "text", "text": "Tell me"}, {"type": "text", "text": "about rain."}]
    async with client_of(fake_state(family, engine)) as client:
        body = {"messages": [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        body = {
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me\nabout rain."}]
        }
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert engine.requests[0].prompt == engine.requests[1].prompt


async def test_steering_is_echoed(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, steering={"method": "bone_soup", "preference": {"positive": 3, "simple": 1}})
    steering = reply["steering"]
    assert steering["method"] == "bone_soup"
    assert steering["preference"] == {"positive": 0.75, "simple": 0.25}
    # B = [[.7, .3], [.3, .7]]: B^T c = (.75, .25)
    assert steering["coefficients"] == pytest.approx({"bone-positive": 1.125, "bone-simple": -0.125})
    assert steering["sources"][0]["coefficients"] == pytest.approx({"bone-positive": 1.125, "bone-simple": -0.125})
    assert any("normalised" in warning for warning in steering["warnings"])


async def test_without_steering_all_objectives_weigh_the_same_and_the_answer_says_so(
    family: Family, engine: FakeEngine
) -> None:
    for body in ({}, {"model": "tiny"}, {"steering": {}}, {"steering": None}, {"steering": {"trace": True}}):
        steering = (await post(family, engine, **body))["steering"]
        assert steering["preference"] == {"positive": 0.5, "simple": 0.5}
        assert steering["warnings"] == ["no preference was given: all objectives weigh the same"]
    steering = (await post(family, engine, model="tiny/base"))["steering"]
    assert steering["preference"] is None and steering["warnings"] == [] and steering["base_share"] == 1.0


async def test_presets_are_models_and_steering_goes_before_them(family: Family, engine: FakeEngine) -> None:
    assert (await post(family, engine, model="cheerful"))["steering"]["preference"] == {"positive": 1.0, "simple": 0.0}
    changed = await post(family, engine, model="cheerful", steering={"preference": {"simple": 1}})
    assert changed["steering"]["preference"] == {"positive": 0.0, "simple": 1.0}
    assert changed["steering"]["method"] == "bone_soup"


async def test_n_gives_choices_with_different_seeds(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, n=3, seed=11)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[0] == 11 and len(set(seeds)) == 3
    # A prompt is counted once, whatever n.
    assert reply["usage"]["prompt_tokens"] == len(engine.requests[0].prompt)
    assert reply["usage"]["completion_tokens"] == 3 * len(engine.tokens(engine.requests[0]))
    await post(family, engine, n=3, seed=11)
    assert [request.sampling.seed for request in engine.requests[3:]] == seeds


async def test_without_a_seed_every_request_draws_its_own(family: Family, engine: FakeEngine) -> None:
    await post(family, engine)
    await post(family, engine)
    assert engine.requests[0].sampling.seed != engine.requests[1].sampling.seed


async def test_sampling_fields_reach_the_engine(family: Family, engine: FakeEngine) -> None:
    await post(
        family,
        engine,
        max_completion_tokens=9,
        temperature=0.3,
        top_p=0.9,
        top_k=7,
        min_p=0.05,
        seed=-4,
        stop=["x", "yy"],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias={"5": -100, "17": 2.5},
        user="me",
    )
    sampling = engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (9, 0.3, 0.9, 7)
    assert (sampling.min_p, sampling.seed, sampling.stop) == (0.05, -4, ("x", "yy"))
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.2)
    assert sampling.logit_bias == ((5, -100.0), (17, 2.5)) and sampling.logprobs is None


async def test_null_is_the_default_everywhere(family: Family, engine: FakeEngine) -> None:
    names = (
        "model",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "n",
        "stop",
        "stream",
        "stream_options",
        "seed",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "user",
        "top_k",
        "min_p",
        "repetition_penalty",
        "steering",
        "tools",
        "response_format",
    )
    await post(family, engine, **{**dict.fromkeys(names), "seed": 3})
    await post(family, engine, seed=3)
    assert engine.requests[0].sampling == engine.requests[1].sampling


async def test_max_tokens_defaults_to_what_the_context_leaves(family: Family, engine: FakeEngine) -> None:
    await post(family, engine)
    request = engine.requests[0]
    assert request.sampling.max_tokens == engine.max_context - len(request.prompt)
    async with client_of(fake_state(family, engine, default_max_tokens=5)) as client:
        await client.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert engine.requests[1].sampling.max_tokens == 5


async def test_length_is_a_finish_reason(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, max_tokens=2)
    assert reply["choices"][0]["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 2


async def test_logprobs(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, logprobs=True, top_logprobs=2)
    content = reply["choices"][0]["logprobs"]["content"]
    ids = engine.tokens(engine.requests[0])[:-1]  # the end-of-text token is no content
    assert [entry["token"] for entry in content] == [engine.tokenizer.decode([token]) for token in ids]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "Hello, gentle rain."
    assert [entry["logprob"] for entry in content] == [-0.25 * (i + 1) for i in range(len(ids))]
    assert all([other["logprob"] for other in entry["top_logprobs"]] == [-0.5, -1.5] for entry in content)
    bare = await post(family, engine, logprobs=True)
    assert all(entry["top_logprobs"] == [] for entry in bare["choices"][0]["logprobs"]["content"])


async def test_a_stream_has_openais_order(family: Family, engine: FakeEngine) -> None:
    *chunks, done = await stream(family, engine)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello, gentle rain."
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert ["steering" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["steering"]["method"] == "bone_soup"


async def test_a_stream_with_usage_ends_with_a_chunk_without_choices(family: Family, engine: FakeEngine) -> None:
    whole = await post(family, engine, n=2)
    *chunks, last, done = await stream(family, engine, n=2, stream_options={"include_usage": True})
    assert done == "[DONE]" and last["choices"] == [] and last["usage"] == whole["usage"]
    assert last["steering"]["method"] == "bone_soup"
    assert all(chunk["usage"] is None and "steering" not in chunk for chunk in chunks)
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant" and mine[-1]["finish_reason"] == "stop"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "Hello, gentle rain."


async def test_streamed_logprobs_are_the_whole_ones(family: Family, engine: FakeEngine) -> None:
    whole = await post(family, engine, logprobs=True, top_logprobs=1)
    *chunks, _ = await stream(family, engine, logprobs=True, top_logprobs=1)
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == whole["choices"][0]["logprobs"][
        "content"
    ]


async def test_a_stop_string_ends_the_text_and_never_leaks(family: Family) -> None:
    engine = FakeEngine("one two three four")
    whole = await post(family, engine, stop=["thr"])
    assert whole["choices"][0]["message"]["content"] == "one two " and whole["choices"][0]["finish_reason"] == "stop"
    *chunks, _ = await stream(family, engine, stop="thr")
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "one two "


async def test_characters_are_never_cut(family: Family) -> None:
    text = "Zoë: naïve 😀 ☂️ 雨"
    engine = FakeEngine(text)
    *chunks, _ = await stream(family, engine)
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
