"""The best of n answers and scores of given texts over HTTP: what comes back, in what order, and what is refused."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asgi import client_of
from guided_requests import World
from led_http import NO_END, ask, require_nothing_left, running_engine, state_of
from seeds import fresh_seed

from ladle.server.engine.engine import Engine
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
PREFERENCE = {"positive": 0.6, "simple": 0.4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("ranked"), random.Random(fresh_seed()))


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[Engine]:
    with running_engine(world.family) as engine:
        yield engine


@pytest.fixture
def state(world: World, engine: Engine) -> ServerState:
    return state_of(world.family, engine)


async def _likelihood(client: httpx.AsyncClient, prompt: list[int], answer: list[int], source: str) -> float:
    """Of ``answer``, from an echo of both under one member."""
    steering = {"method": "custom", "terms": [{"source": source, "weight": 1}]}
    body = {"prompt": prompt + answer, "echo": True, "logprobs": 0, "max_tokens": 0, "steering": steering}
    reply = await ask(client, "/v1/completions", **body)
    return float(sum(reply["choices"][0]["logprobs"]["token_logprobs"][len(prompt) :]))


@pytest.mark.parametrize("by", ["likelihood", "implicit", "explicit"])
async def test_the_best_come_first(state: ServerState, by: str) -> None:
    rng = random.Random(fresh_seed())
    n, keep, seed = rng.randint(3, 6), rng.randint(1, 3), rng.getrandbits(31)
    steering = {"method": rng.choice(["bone_soup", "mage", "vas"]), "preference": PREFERENCE}
    body = {"prompt": "what is good", "n": n, "seed": seed, "max_tokens": 6, "logprobs": True, **NO_END}
    async with client_of(state) as client:
        plain = await ask(client, "/v1/generate", **body, steering=steering)
        ranked = {**steering, "rank": {"by": by, "keep": keep}}
        best, again = await asyncio.gather(*(ask(client, "/v1/generate", **body, steering=ranked) for _ in "ab"))
        every = await ask(client, "/v1/generate", **body, steering={**steering, "rank": {"by": by, "keep": n}})
        metrics = (await client.get("/metrics")).text
        prompt = (await ask(client, "/tokenize", prompt="what is good"))["tokens"]
        written = [([token["id"] for token in choice["tokens"]], choice["score"]) for choice in every["choices"]]
        # The model has more rows than the tokenizer has tokens, and draws them; no request may send these.
        known = [(ids, score) for ids, score in written if max(ids) < 300]
        asked = {**steering, "method": "bone_soup"} if by == "likelihood" else steering
        texts = [ids for ids, _ in known] or [[5]]
        said = await ask(client, "/v1/score", prompt="what is good", texts=texts, by=by, steering=asked)
        if by == "implicit":
            # The sum of two echoes, weighed by the preference.
            for answer, found in known:
                wanted = -await _likelihood(client, prompt, answer, "base")
                for name, share in PREFERENCE.items():
                    wanted += share * await _likelihood(client, prompt, answer, f"tuned-{name}")
                assert found == pytest.approx(wanted, abs=1e-4)
    assert best["choices"] == again["choices"] == every["choices"][:keep]
    assert [choice["index"] for choice in every["choices"]] == list(range(n))
    scores = [choice["score"] for choice in every["choices"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(choice["text"] for choice in every["choices"]) == sorted(
        choice["text"] for choice in plain["choices"]
    )
    assert best["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"] == 6 * n
    assert best["steering"]["rank"]["by"] == by and "score" not in plain["choices"][0]
    assert f'ladle_scored_answers_total{{by="{by}"}}' in metrics
    if by == "likelihood":
        listed = [sum(token["logprob"] for token in choice["tokens"]) for choice in every["choices"]]
        assert scores == pytest.approx(listed, abs=1e-4)
    else:
        for entry, (_, found) in zip(said["scores"], known, strict=False):
            assert entry["score"] == pytest.approx(found, abs=1e-4)
            assert sum(part["weight"] * part["value"] for part in entry["parts"]) == pytest.approx(found, abs=1e-4)


async def test_openai_endpoints_rank_each_prompt_by_itself(state: ServerState) -> None:
    steering = {"method": "base", "preference": PREFERENCE, "rank": {"by": "explicit", "keep": 2}}
    body = {"n": 3, "seed": 5, "max_tokens": 4, "steering": steering, **NO_END}
    async with client_of(state) as client:
        several = await ask(client, "/v1/completions", prompt=["one", "two"], echo=True, **body)
        single = await ask(client, "/v1/completions", prompt="two", echo=True, **body)
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:3] for choice in several["choices"]] == ["one", "one", "two", "two"]
    assert [choice["text"] for choice in several["choices"][2:]] == [choice["text"] for choice in single["choices"]]
    assert several["usage"]["completion_tokens"] == 24


async def test_equal_answers_stay_in_order_and_forms_are_kept(state: ServerState) -> None:
    steering = {"method": "base", "preference": PREFERENCE, "rank": {"by": "implicit", "keep": 4, "per": "token"}}
    form = {"structured_outputs": {"choice": ["a", "b b"]}}
    async with client_of(state) as client:
        reply = await ask(client, "/v1/generate", prompt="x", n=4, temperature=0, max_tokens=9, steering=steering)
        chosen = await ask(client, "/v1/generate", prompt="x", n=4, max_tokens=9, steering=steering, **form)
    assert len({(choice["text"], choice["score"]) for choice in reply["choices"]}) == 1
    assert {choice["text"] for choice in chosen["choices"]} <= {"a", "b b"}


@pytest.mark.parametrize(
    ("path", "body", "steering", "param"),
    [
        ("/v1/generate", {"prompt": "a"}, {}, "steering.rank"),
        ("/v1/generate", {"prompt": "a", "n": 1}, {}, "steering.rank"),
        ("/v1/generate", {"prompt": "a", "n": 2, "stream": True}, {}, "stream"),
        ("/v1/completions", {"prompt": "a", "n": 2, "stream": True}, {}, "stream"),
        ("/v1/generate", {"prompt": "a", "n": 2}, {"keep": 3}, "steering.rank.keep"),
        ("/v1/generate", {"prompt": "a", "n": 2}, {"keep": 0}, "steering.rank.keep"),
        ("/v1/generate", {"prompt": "a", "n": 2}, {"by": "taste"}, "steering.rank.by"),
        ("/v1/generate", {"prompt": "a", "n": 2}, {"by": "router"}, "steering.rank.by"),
        ("/v1/generate", {"prompt": "a", "n": 2}, {"best": 1}, "steering.rank.best"),
        ("/v1/generate", {"prompt": "a", "n": 2}, {"per": "token"}, "steering.rank.per"),
        ("/v1/score", {"prompt": "a", "texts": ["b"], "by": "explicit"}, {}, "steering.rank"),
        ("/v1/score", {"prompt": "a", "texts": [], "by": "explicit"}, None, "texts"),
        ("/v1/score", {"prompt": "a", "texts": [[9**9]], "by": "explicit"}, None, "texts[0]"),
        ("/v1/score", {"prompt": "a", "texts": ["b " * 5000], "by": "explicit"}, None, "texts"),
        ("/v1/score", {"texts": ["b"], "by": "explicit"}, None, "prompt"),
        ("/v1/score", {"prompt": "a", "texts": ["b"], "by": "explicit", "per": "token"}, None, "steering.rank.per"),
    ],
)
async def test_what_has_no_meaning_is_refused(
    state: ServerState, path: str, body: dict[str, Any], steering: dict[str, Any] | None, param: str
) -> None:
    rank = {} if steering is None else {"rank": {"by": "explicit", **steering}}
    async with client_of(state) as client:
        asked = {"method": "base", "preference": PREFERENCE, **rank}
        error = await ask(client, path, 400, **body, steering=asked)
    assert error["param"] == param, error


async def test_rankings_that_the_plan_does_not_allow(state: ServerState) -> None:
    async with client_of(state) as client:
        blocks = {"method": "cd", "preference": PREFERENCE, "block_length": 2, "rank": {"by": "likelihood"}}
        error = await ask(client, "/v1/generate", 400, prompt="a", n=2, steering=blocks)
        assert error["param"] == "steering.rank" and "block_length" in error["message"]
        nowhere = {"method": "base", "rank": {"by": "explicit"}}
        error = await ask(client, "/v1/generate", 400, prompt="a", n=2, steering=nowhere)
        assert error["param"] == "steering.preference"
        grown = {"method": "vas", "preference": PREFERENCE}
        error = await ask(client, "/v1/score", 400, prompt="a", texts=["b"], by="likelihood", steering=grown)
        assert error["param"] == "by" and "vas" in error["message"]


async def test_texts_fill_the_context_and_may_be_empty(state: ServerState, engine: Engine) -> None:
    room = engine.max_context - 2
    async with client_of(state) as client:
        for by in ("explicit", "implicit", "likelihood"):
            asked = {"prompt": [5, 6], "by": by, "steering": {"method": "mod", "preference": PREFERENCE}}
            found = await ask(client, "/v1/score", texts=["", [7], [8] * room], **asked)
            assert [entry["tokens"] for entry in found["scores"]] == [0, 1, room]
            assert (found["scores"][0]["score"] == 0) == (by != "explicit")
            assert found["usage"]["prompt_tokens"] == 2 + 1 + room and found["usage"]["completion_tokens"] == 0
            error = await ask(client, "/v1/score", 400, texts=[[8] * (room + 1)], **asked)
            assert error["code"] == "context_length_exceeded"
            ended, same = (await ask(client, "/v1/score", texts=["ab", "ab"], end=True, **asked))["scores"]
            assert ended["score"] == same["score"]


async def test_who_leaves_leaves_nothing_behind(state: ServerState, engine: Engine) -> None:
    steering = {"method": "mage", "preference": PREFERENCE, "rank": {"by": "explicit"}}
    body = {"prompt": "what", "n": 5, "max_tokens": 40, "steering": steering, **NO_END}
    async with client_of(state) as client:
        tasks = [asyncio.create_task(client.post("/v1/generate", json=body)) for _ in range(2)]
        await asyncio.sleep(random.uniform(0.01, 0.15))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reply = await ask(client, "/v1/generate", prompt="a", max_tokens=2)
    assert len(reply["choices"]) == 1
    await require_nothing_left(engine)
