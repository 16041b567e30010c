"""HTTP over the real engine on a tiny family: numbers, seeds, batching, and that everything is given back."""

import asyncio
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from asgi import Call, app_of, client_of, events_of, wait_until
from transformers import AutoModelForCausalLM

from ladle.guidance.offline import merge_offline
from ladle.guidance.plan import Steering
from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKeys
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("idle_after")]
NO_END = {"logit_bias": {"2": -100, "0": -100}}  # random models end their texts at random


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def prompt_of(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(3, 300) for _ in range(length)]


@pytest.mark.parametrize("method", ["bone_soup", "rewarded_soup", "base"])
async def test_greedy_tokens_are_those_of_the_merged_checkpoint(
    family: Family, real_state: ServerState, tmp_path: Path, rng: random.Random, method: str
) -> None:
    weight = rng.random()
    preference = {"positive": weight, "simple": 1 - weight}
    merge_offline(family, Steering(method=method, preference=preference), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    prompt = prompt_of(rng, 23)
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :].tolist()
    steering = {"method": method, "preference": preference, "trace": True}
    body = {"prompt": prompt, "max_tokens": 20, "temperature": 0, "steering": steering}
    async with client_of(real_state) as client:
        reply = (await client.post("/v1/generate", json=body)).json()
    assert [token["id"] for token in reply["choices"][0]["tokens"]] == expected


async def test_a_trace_is_the_arithmetic_of_two_models(
    family: Family, real_state: ServerState, tmp_path: Path, rng: random.Random
) -> None:
    preference = {"positive": 0.9, "simple": 0.1}
    merge_offline(family, Steering(preference=preference), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    base = AutoModelForCausalLM.from_pretrained(family.base_path, dtype=torch.float64)
    prompt = prompt_of(rng, 11)
    steering = {"preference": preference, "trace": True}
    body = {
        "prompt": prompt,
        "max_tokens": 12,
        "temperature": 1.3,
        "steering": steering,
        "logprobs": True,
        "top_logprobs": 3,
    }
    async with client_of(real_state) as client:
        reply = (await client.post("/v1/generate", json={**body, **NO_END})).json()
    tokens = reply["choices"][0]["tokens"]
    ids = torch.tensor([prompt + [token["id"] for token in tokens]])
    with torch.no_grad():
        final, plain = (model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in (merged, base))
    for position, token in enumerate(tokens):
        assert token["logprob"] == pytest.approx(final[position, token["id"]].item(), abs=1e-4)
        assert token["base_logprob"] == pytest.approx(plain[position, token["id"]].item(), abs=1e-4)
        shift = (plain[position].exp() * (plain[position] - final[position])).sum().item()
        assert token["shift"] == pytest.approx(shift, abs=1e-4)
        best = final[position].topk(3)
        assert [other["logprob"] for other in token["top"]] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_sixteen_preferences_at_once_give_what_each_gives_alone(
    real_state: ServerState, rng: random.Random
) -> None:
    bodies = []
    for index in range(16):
        weight = rng.random()
        bodies.append(
            {
                "prompt": prompt_of(rng, rng.randint(1, 60)),
                "max_tokens": rng.randint(8, 24),
                "seed": rng.randrange(1 << 32),
                "temperature": rng.choice([0.7, 1.0, 1.5]),
                "top_p": rng.choice([1, 0.9]),
                "repetition_penalty": rng.choice([1, 1.3]),
                "logprobs": True,
                "steering": {
                    "method": rng.choice(["bone_soup", "rewarded_soup"]) if index else "base",
                    "preference": {"positive": weight, "simple": 1 - weight},
                    "trace": rng.random() < 0.3,
                },
            }
        )
    async with client_of(real_state) as client:

        async def tokens(body: dict) -> list[int]:
            response = await client.post("/v1/generate", json=body)
            assert response.status_code == 200, response.text
            return [token["id"] for token in response.json()["choices"][0]["tokens"]]

        together = await asyncio.gather(*map(tokens, bodies))
        alone = [await tokens(body) for body in bodies]
    assert together == alone


async def test_a_stream_says_what_the_whole_answer_says(real_state: ServerState, rng: random.Random) -> None:
    body = {"prompt": "the rain in", "n": 3, "seed": rng.randrange(1 << 32), "max_tokens": 20, "stop": ["e", "th"]}
    async with client_of(real_state) as client:
        whole = (await client.post("/v1/completions", json=body)).json()
        streamed = await client.post("/v1/completions", json={**body, "stream": True})
    *chunks, done = events_of(streamed.text)
    assert done == "[DONE]"
    for choice in whole["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert not any(stop in choice["text"] for stop in body["stop"])


async def test_the_seed_of_an_answer_gives_it_again(real_state: ServerState) -> None:
    body = {"prompt": "tell me", "n": 2, "max_tokens": 16, **NO_END}
    async with client_of(real_state) as client:
        first = (await client.post("/v1/generate", json=body)).json()
        again = (await client.post("/v1/generate", json={**body, "seed": first["seed"]})).json()
        other = (await client.post("/v1/generate", json=body)).json()
    assert [choice["text"] for choice in again["choices"]] == [choice["text"] for choice in first["choices"]]
    assert first["choices"][0]["text"] != first["choices"][1]["text"]
    assert other["choices"][0]["text"] != first["choices"][0]["text"]


async def test_a_prompt_that_was_seen_is_cached_under_the_same_weights_only(
    real_state: ServerState, rng: random.Random
) -> None:
    prompt = prompt_of(rng, 70)

    async def cached(preference: dict) -> int:
        body = {"prompt": prompt, "max_tokens": 1, "steering": {"preference": preference}}
        async with client_of(real_state) as client:
            usage = (await client.post("/v1/completions", json=body)).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    weight = rng.random()
    assert await cached({"positive": weight, "simple": 1 - weight}) == 0
    assert await cached({"positive": weight, "simple": 1 - weight}) == 64
    assert await cached({"positive": 1 - weight, "simple": weight}) == 0


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    "steering",
    [{"method": "base"}, {"preference": {"positive": 1}, "trace": True}, {"method": "cfg", "negative_prompt": "No."}],
)
async def test_keys_and_salts_keep_prefixes_apart(
    family: Family,
    real_engine: Engine,
    rng: random.Random,
    request: pytest.FixtureRequest,
    share: bool,
    steering: dict,
) -> None:
    """Nobody learns what another key has sent, nor, within a key, what was sent under another salt."""
    state = ServerState(ServerSettings(share_prefixes=share), keys=ApiKeys.of("alice", "bob"))
    state.publish(Serving.of(family, AsyncEngine(real_engine), real_engine.vocabulary))
    # The engine is that of all cases, and one seed may decide all prompts: each case has a beginning of its own.
    prompt = [*request.node.name[-14:].encode(), *prompt_of(rng, 70)]

    async def cached(key: str, salt: str | None) -> bool:
        path, limit = rng.choice([("/v1/completions", "max_tokens"), ("/v1/generate", "max_tokens")])
        body = {"prompt": prompt, limit: 1, "steering": steering, "cache_salt": salt}
        async with client_of(state) as client:
            reply = await client.post(path, json=body, headers={"authorization": f"Bearer {key}"})
        return bool(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0)

    order = [(key, salt) for key in ("alice", "bob") for salt in (None, "one", "two 😀")]
    rng.shuffle(order)
    seen: set[tuple[str, str | None]] = set()
    for key, salt in [*order, *order]:
        tenant = ("" if share else key, salt)
        assert await cached(key, salt) == (tenant in seen), (key, salt)
        seen.add(tenant)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_other_apis_keep_prefixes_apart(
    family: Family, real_engine: Engine, rng: random.Random, path: str
) -> None:
    state = ServerState(ServerSettings(), keys=ApiKeys.of("alice", "bob"))
    state.publish(Serving.of(family, AsyncEngine(real_engine), real_engine.vocabulary))
    said = f"{path} {rng.random()} and rain, rain, rain"

    async def cached(key: str, salt: str | None) -> int:
        body = {"input": said, "max_output_tokens": 1}
        if path == "/v1/messages":
            body = {"messages": [{"role": "user", "content": said}], "max_tokens": 1}
        async with client_of(state) as client:
            reply = await client.post(path, json={**body, "cache_salt": salt}, headers={"x-api-key": key})
        usage = reply.json()["usage"]
        found: int = usage.get("cache_read_input_tokens", usage.get("input_tokens_details", {}).get("cached_tokens"))
        return found

    tenants: list[tuple[str, str | None]] = [("alice", None), ("bob", None), ("alice", "one"), ("bob", "one")]
    assert [await cached(*tenant) for tenant in tenants] == [0, 0, 0, 0]
    assert all([await cached(*tenant) for tenant in tenants])


async def test_leaving_frees_lanes_and_blocks_at_once(real_state: ServerState, real_engine: Engine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for stream in (False, True):
        body = json.dumps({"messages": messages, "n": 4, "max_tokens": 400, "stream": stream, **NO_END}).encode()
        call = Call(app_of(real_state), "/v1/chat/completions", body)
        await wait_until(lambda: real_engine.stats().running == 4)
        call.leave()
        await call.task
        steps = real_engine.stats().steps
        await asyncio.sleep(0.1)
        stats = real_engine.stats()
        assert stats.running == 0 and stats.blocks_free == stats.blocks_total
        assert stats.steps - steps <= 2, "a step may be under way; no further one may follow"


async def test_bad_input_leaves_nothing_behind(real_state: ServerState, real_engine: Engine) -> None:
    bodies = [
        {"prompt": "hi", "max_tokens": 10_000},
        {"prompt": [5] * 600},
        {"prompt": "hi", "steering": {"preference": {"happy": 1}}},
        {"prompt": "hi", "logit_bias": {"319": 1}},
        {"prompt": ["hi", [5]]},
        {"prompt": ""},
    ]
    steps = real_engine.stats().steps
    async with client_of(real_state) as client:
        for body in bodies:
            assert (await client.post("/v1/completions", json=body)).status_code == 400
    assert real_engine.stats().steps == steps


async def test_a_full_queue(family: Family) -> None:
    from ladle.server.engine.async_engine import AsyncEngine
    from ladle.server.engine.engine_config import EngineConfig
    from ladle.server.serving import Serving
    from ladle.server.settings import ServerSettings

    config = EngineConfig(device="cpu", dtype="float32", max_sequences=1, max_lanes=2, kv_memory=1 << 20, max_queue=1)
    engine = Engine(family, config)
    engine.start()
    state = ServerState(ServerSettings())
    state.publish(Serving.of(family, AsyncEngine(engine), engine.vocabulary))
    body = json.dumps({"prompt": "hi", "max_tokens": 450, **NO_END}).encode()
    calls = []
    # The second one comes when the first has left the queue: before, it would be the one too many.
    for running, waiting in ((1, 0), (1, 1)):
        calls.append(Call(app_of(state), "/v1/completions", body))
        await wait_until(lambda: ((stats := engine.stats()).running, stats.waiting) == (running, waiting))  # noqa: B023
    async with client_of(state) as client:
        response = await client.post("/v1/completions", json={"prompt": "hi"})
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    for call in calls:
        call.leave()
        await call.task
    await asyncio.to_thread(engine.shutdown)


async def test_long_prompts_do_not_hold_up_the_loop(real_state: ServerState, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompt = " ".join("".join(map(chr, rng.integers(97, 123, size=7))) for _ in range(200_000))
    gaps: list[float] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(0.001)
            now = loop.time()
            gaps.append(now - last)
            last = now

    watcher = asyncio.create_task(watch())
    start = asyncio.get_running_loop().time()
    async with client_of(real_state) as client:
        response = await client.post("/v1/completions", json={"prompt": prompt})
    took = asyncio.get_running_loop().time() - start
    while not gaps:  # the answer may have come before the loop's first turn, late as that was
        await asyncio.sleep(0.001)
    watcher.cancel()
    assert response.status_code == 400 and "tokens" in response.json()["error"]["message"]
    print(f"{took:.3f} s in all, longest gap {max(gaps):.3f} s")
    assert max(gaps) < max(0.1, took / 3), f"{took:.3f} s in all, longest gap {max(gaps):.3f} s"
