"""``POST /v1/completions`` in OpenAI's shapes."""

import pytest
from asgi import client_of, events_of
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio


async def post(family: Family, engine: FakeEngine, **body: object) -> dict:
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(family: Family, engine: FakeEngine, **body: object) -> list:
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post("/v1/completions", json={"stream": True, **body})
    assert response.status_code == 200, response.text
    return events_of(response.text)


async def test_the_answer_has_openais_shape(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, prompt="Once", max_tokens=64)
    assert reply["object"] == "text_completion" and reply["id"].startswith("cmpl-") and reply["model"] == "tiny"
    assert reply["choices"] == [{"index": 0, "text": "Hello, gentle rain.", "logprobs": None, "finish_reason": "stop"}]
    assert reply["usage"]["prompt_tokens"] == len(engine.requests[0].prompt)
    assert reply["steering"]["method"] == "bone_soup"


async def test_max_tokens_defaults_to_16_as_openai_documents(family: Family, engine: FakeEngine) -> None:
    await post(family, engine, prompt="Once")
    await post(family, engine, prompt=[5] * (engine.max_context - 3))
    assert [request.sampling.max_tokens for request in engine.requests] == [16, 3]


async def test_four_forms_of_prompt(family: Family, engine: FakeEngine) -> None:
    ids = engine.tokenizer("Once upon").input_ids
    await post(family, engine, prompt="Once upon")
    await post(family, engine, prompt=ids)
    await post(family, engine, prompt=["Once upon", "a time"])
    await post(family, engine, prompt=[ids, [7, 8]])
    prompts = [list(request.prompt) for request in engine.requests]
    assert prompts == [ids, ids, ids, engine.tokenizer("a time").input_ids, ids, [7, 8]]


async def test_choices_of_several_prompts_follow_each_other(family: Family) -> None:
    engine = FakeEngine(lambda request: f"{request.prompt[0]} {request.sampling.seed}")
    reply = await post(family, engine, prompt=[[40], [50, 51]], n=2, seed=9, max_tokens=60)
    texts = [choice["text"] for choice in reply["choices"]]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [text.split()[0] for text in texts] == ["40", "40", "50", "50"]
    # What a prompt gets does not depend on the other prompts of the request.
    alone = await post(family, engine, prompt=[50, 51], n=2, seed=9, max_tokens=60)
    assert [choice["text"] for choice in alone["choices"]] == texts[2:]
    assert reply["usage"]["prompt_tokens"] == 3


async def test_legacy_logprobs(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, prompt="Once", max_tokens=64, logprobs=2)
    choice = reply["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"] == "Hello, gentle rain."
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    assert logprobs["token_logprobs"] == [-0.25 * (i + 1) for i in range(len(logprobs["tokens"]))]
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob and len(top) == 3
    bare = (await post(family, engine, prompt="Once", max_tokens=64, logprobs=0))["choices"][0]["logprobs"]
    assert all(len(top) == 1 for top in bare["top_logprobs"])


async def test_stream(family: Family, engine: FakeEngine) -> None:
    whole = await post(family, engine, prompt="Once", max_tokens=64, logprobs=1)
    *chunks, done = await stream(family, engine, prompt="Once", max_tokens=64, logprobs=1)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello, gentle rain."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert ["steering" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        pieces = [entry for chunk in chunks for entry in chunk["choices"][0]["logprobs"][key]]
        assert pieces == whole["choices"][0]["logprobs"][key]


async def test_stream_with_usage(family: Family, engine: FakeEngine) -> None:
    options = {"prompt": ["a", "b"], "n": 2, "max_tokens": 3}
    whole = await post(family, engine, **options)
    *chunks, last, done = await stream(family, engine, **options, stream_options={"include_usage": True})
    assert done == "[DONE]" and last["choices"] == [] and last["usage"] == whole["usage"]
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1, 2, 3}
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_an_echo_is_the_prompt_and_what_was_said_of_it(family: Family, engine: FakeEngine) -> None:
    prompt = "Tell me, gentle \u2603 rain"
    ids = engine.tokenizer(prompt).input_ids
    plain = (await post(family, engine, prompt=prompt, max_tokens=64, logprobs=2))["choices"][0]
    assert (await post(family, engine, prompt=prompt, max_tokens=64, echo=True))["choices"][0] == {
        "index": 0, "text": prompt + plain["text"], "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    for sent in (prompt, ids):
        choice = (await post(family, engine, prompt=sent, max_tokens=64, logprobs=2, echo=True))["choices"][0]
        found = choice["logprobs"]
        assert choice["text"] == prompt + plain["text"]
        # The token that ends the text is counted, so that whoever scores texts can count too.
        assert found["tokens"][len(ids) : -1] == plain["logprobs"]["tokens"] and found["tokens"][-1] == "<|im_end|>"
        assert found["token_logprobs"][: len(ids)] == [None, *(-0.125 * token for token in ids[1:])]
        assert found["top_logprobs"][0] is None and all(len(top) == 3 for top in found["top_logprobs"][1:])
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
            assert top is None or top[token] == logprob
        # Parts of a character have names that differ; whole tokens stand where their offset says.
        assert len([token for token in found["tokens"] if token.startswith("bytes:\\x")]) == 3
        for token, offset in zip(found["tokens"][:-1], found["text_offset"], strict=False):
            assert token.startswith("bytes:") or choice["text"][offset:].startswith(token)


async def test_an_echo_alone(family: Family, engine: FakeEngine) -> None:
    reply = await post(family, engine, prompt=["a b", "the rain"], max_tokens=0, logprobs=0, echo=True, n=2)
    assert [choice["text"] for choice in reply["choices"]] == ["a b", "a b", "the rain", "the rain"]
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"length"}
    assert all(len(top) == 1 for choice in reply["choices"] for top in choice["logprobs"]["top_logprobs"][1:])
    prompts = {request.prompt for request in engine.requests}
    assert reply["usage"]["completion_tokens"] == 0 and reply["usage"]["prompt_tokens"] == sum(map(len, prompts))


async def test_an_echo_is_streamed_first(family: Family, engine: FakeEngine) -> None:
    for limit in (0, 5):
        options = {"prompt": [[9, 8, 7], [7]], "echo": True, "logprobs": 1, "max_tokens": limit}
        whole = (await post(family, engine, **options))["choices"]
        *chunks, done = await stream(family, engine, **options)
        assert done == "[DONE]"
        for choice in whole:
            own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
            assert "".join(piece["text"] for piece in own) == choice["text"]
            assert own[-1]["finish_reason"] == choice["finish_reason"] == "length"
            for key, expected in choice["logprobs"].items():
                assert [entry for piece in own for entry in piece["logprobs"][key]] == expected
