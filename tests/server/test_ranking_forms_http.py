"""Answers ranked by a router, a question or a vote over HTTP."""

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asgi import client_of
from led_http import NO_END, ask, running_engine, state_of
from routed_folder import write_routed_family
from seeds import fresh_seed

from ladle.merging.family.family import Family, load_family
from ladle.server.engine.engine import Engine
from ladle.server.state import ServerState
from ladle.server.text.patterns import found

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "what is good"}]
QUESTION = "Is this reply kind?"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(write_routed_family(tmp_path_factory.mktemp("ranked"), seed=fresh_seed() % 1000))


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Engine]:
    with running_engine(family) as engine:
        yield engine


@pytest.fixture
def state(family: Family, engine: Engine) -> ServerState:
    return state_of(family, engine)


async def _logprobs(client: httpx.AsyncClient, prompt: list[int], steering: dict[str, Any]) -> list[float]:
    """Of the tokens of ``prompt`` from the second on."""
    body = {"prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 0, "steering": steering}
    listed: list[float] = (await ask(client, "/v1/completions", **body))["choices"][0]["logprobs"]["token_logprobs"]
    return listed[1:]


async def test_the_router_and_a_question_rank_whole_answers(state: ServerState) -> None:
    rng = random.Random(fresh_seed())
    n, seed = rng.randint(3, 5), rng.getrandbits(31)
    method = rng.choice([{"method": "bone_soup", "preference": {"positive": 1}}, {"method": "fusion_route"}])
    body = {"prompt": "what is good", "n": n, "seed": seed, "max_tokens": 6, "logprobs": True, **NO_END}
    async with client_of(state) as client:
        prompt = (await ask(client, "/tokenize", prompt="what is good"))["tokens"]
        asked = (await ask(client, "/tokenize", prompt=f"\n\n{QUESTION} Answer with yes or no.\nAnswer:"))["tokens"]
        words = [(await ask(client, "/tokenize", prompt=word))["tokens"] for word in (" Yes", " No")]
        alike = next(i for i, (a, b) in enumerate(zip(*words, strict=False)) if a != b)
        plain = await ask(client, "/v1/generate", **body, steering=method)
        for by in ("router", {"ask": QUESTION}):
            steering = {**method, "rank": {"by": by, "keep": n}}
            every = await ask(client, "/v1/generate", **body, steering=steering)
            (best,) = (await ask(client, "/v1/generate", **body, steering={**method, "rank": {"by": by}}))["choices"]
            assert best == every["choices"][0] and every["steering"]["rank"]["by"] == by
            assert [source["name"] for source in every["steering"]["rank"]["sources"]] in (["router"], ["base"])
            assert {choice["text"] for choice in every["choices"]} == {choice["text"] for choice in plain["choices"]}
            scores = [choice["score"] for choice in every["choices"]]
            assert scores == sorted(scores, reverse=True)
            for choice in every["choices"]:
                answer = [token["id"] for token in choice["tokens"]]
                if max(answer) >= 300:
                    continue  # the model has more rows than the tokenizer has tokens; no request may send these
                if by == "router":
                    router = {"method": "custom", "terms": [{"source": "router", "weight": 1}]}
                    wanted = sum((await _logprobs(client, prompt + answer, router))[len(prompt) - 1 :])
                else:
                    before = [*prompt, *answer, *asked, *words[0][:alike]]
                    yes, no = [
                        (await _logprobs(client, [*before, word[alike]], {"method": "base"}))[-1] for word in words
                    ]
                    wanted = yes - no
                assert choice["score"] == pytest.approx(wanted, abs=1e-4)
                said = await ask(client, "/v1/score", prompt="what is good", texts=[answer], by=by, steering=method)
                assert said["scores"][0]["score"] == pytest.approx(wanted, abs=1e-4)
        # In a conversation the question is the user's next turn.
        chat = await ask(
            client, "/v1/chat/completions", messages=MESSAGES, n=2, max_tokens=5,
            steering={"rank": {"by": {"ask": QUESTION}, "keep": 2}},
        )  # fmt: skip
        said = await ask(client, "/v1/score", messages=MESSAGES, texts=["a", "b"], by={"ask": QUESTION})
    assert all(math.isfinite(choice["score"]) for choice in chat["choices"])
    assert said["steering"]["rank"]["by"] == {"ask": QUESTION} and len(said["scores"]) == 2


async def test_a_vote_counts_what_answers_say(state: ServerState) -> None:
    rng = random.Random(fresh_seed())
    options = rng.sample(["so 1", "so 2", "yes 1", "no 3", "nothing"], 4)
    form = {"structured_outputs": {"choice": options}, "n": 9, "seed": rng.getrandbits(31), "logprobs": True}
    steering = {"method": "base", "rank": {"by": {"vote": r"(?:so|no|yes) (\d)"}, "keep": 9}}
    async with client_of(state) as client:
        for prompt in ("x", ["x", "what is"]):
            path = "/v1/generate" if isinstance(prompt, str) else "/v1/completions"
            reply = await ask(client, path, prompt=prompt, max_tokens=30, steering=steering, **(
                form if path == "/v1/generate" else {**form, "logprobs": 0}
            ))  # fmt: skip
            for start in range(0, len(reply["choices"]), 9):
                own = reply["choices"][start : start + 9]
                groups = [choice["text"][-1] if choice["text"][-1].isdigit() else None for choice in own]
                votes = Counter(groups)
                votes[None] = 0
                assert [choice["score"] for choice in own] == [votes[group] for group in groups]
                if path == "/v1/generate":
                    ranks = [(c["score"], sum(t["logprob"] for t in c["tokens"])) for c in own]
                    assert ranks == [pytest.approx(rank, abs=1e-4) for rank in sorted(ranks, reverse=True)]
        metrics = (await client.get("/metrics")).text
    assert 'ladle_scored_answers_total{by="vote"}' in metrics


async def test_what_a_pattern_finds() -> None:
    texts = ["a 1 b 2", "none", "", "x 3"]
    assert await found(r"\d", texts, "f") == ["2", None, None, "3"]
    assert await found(r"(\w) (\d)", texts, "f") == ["b", None, None, "x"]
    assert await found(r"(z)?\d", texts, "f") == [None, None, None, None], "a group that takes no part says nothing"


@pytest.mark.parametrize(
    ("by", "param", "words"),
    [
        ({"vote": "(a"}, "steering.rank.by.vote", "missing )"),
        ({"vote": "("*500 + ")"*500}, "steering.rank.by.vote", "nested"),
        ({"vote": ""}, "steering.rank.by.vote", "1 to 1000"),
        ({"vote": "a" * 1001}, "steering.rank.by.vote", "1 to 1000"),
        ({"vote": 5}, "steering.rank.by.vote", "a pattern"),
        ({"vote": r"(?:.?){60}(?:.?){60}(?:.?){60}(?:.?){60}$^x"}, "steering.rank.by.vote", "too much memory"),
        ({"vote": "(?<=a*)b"}, "steering.rank.by.vote", "fixed-width"),
        ({"ask": " "}, "steering.rank.by.ask", "yes or no"),
        ({"ask": "a", "vote": "b"}, "steering.rank.by", "likelihood"),
        ({}, "steering.rank.by", "likelihood"),
        ("majority", "steering.rank.by", "vote"),
        ("implicit", "steering.rank.by", "router"),
    ],
)  # fmt: skip
async def test_what_has_no_meaning_is_refused(state: ServerState, by: Any, param: str, words: str) -> None:
    body = {"prompt": "x", "n": 2, "max_tokens": 40, **NO_END}
    async with client_of(state) as client:
        error = await ask(client, "/v1/generate", 400, **body, steering={"method": "base", "rank": {"by": by}})
    assert error["param"] == param and words in error["message"], error


async def test_more_that_is_refused(state: ServerState, engine: Engine) -> None:
    async with client_of(state) as client:
        error = await ask(client, "/v1/score", 400, prompt="a", texts=["b"], by={"vote": "b"})
        assert error["param"] == "by" and "do not vote" in error["message"]
        steering = {"method": "base", "rank": {"by": {"ask": "kind"}, "per": "token"}}
        error = await ask(client, "/v1/generate", 400, prompt="a", n=2, steering=steering)
        assert error["param"] == "steering.rank.per"
        # There has to be room for the question behind the longest answer.
        long = {"method": "base", "rank": {"by": {"ask": "kind " * 40}}}
        asks = {"prompt": "a", "n": 2, "steering": long}
        error = await ask(client, "/v1/generate", 400, **asks, max_tokens=engine.max_context - 3)
        assert error["code"] == "context_length_exceeded" and "steering.rank.by.ask" in error["message"]
        error = await ask(
            client, "/v1/score", 400, prompt="a", texts=[[5] * (engine.max_context - 9)], by={"ask": "kind " * 40}
        )
        assert error["code"] == "context_length_exceeded" and "question" in error["message"]
