"""Answers that are watched over HTTP: what every endpoint says of their end, what leaves, and what is refused."""

import math
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asgi import client_of, events_of, named_events_of
from guided_folder import write_guided_family
from seeds import fresh_seed
from watched_folder import MONITOR, add_monitors
from watched_text import bound, ends_at

from ladle.clients import Generation
from ladle.merging.family.family import Family, load_family
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
PREFERENCE = {"positive": 0.6, "simple": 0.4}
NO_END: dict[str, Any] = {"logit_bias": {"2": -100, "0": -100}}
FAMILYS = {"name": "house", "value": MONITOR, "above": 0.999999, "for": 5, "hold": 2}
MESSAGES = [{"role": "user", "content": "what is good"}]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    seed = fresh_seed()
    root = write_guided_family(tmp_path_factory.mktemp("watched"), seed=seed % 1000)
    return load_family(add_monitors(root, seed % 1000, [FAMILYS]))


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Engine]:
    engine = Engine(family, EngineConfig(device="cpu", dtype="float32", max_lanes=120, kv_memory=16 << 20))
    engine.start()
    yield engine
    engine.shutdown()


@pytest.fixture
def state(family: Family, engine: Engine) -> ServerState:
    state = ServerState(ServerSettings())
    state.publish(Serving.of(family, AsyncEngine(engine), engine.vocabulary))
    return state


async def ask(client: httpx.AsyncClient, path: str, status: int = 200, **body: Any) -> Any:
    reply = await client.post(path, json=body)
    assert reply.status_code == status, reply.text
    return reply.json() if status == 200 else reply.json()["error"]


def with_monitor(monitor: dict[str, Any], **steering: Any) -> dict[str, Any]:
    return {"method": "base", "monitor": monitor, **steering}


async def _traced(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    """The choices of an answer with what the value says of every token."""
    steering = with_monitor({"value": "score-positive", "above": 1e9}, trace=True)
    return list((await ask(client, "/v1/generate", steering=steering, **body))["choices"])


async def _cut(client: httpx.AsyncClient, shown: int, index: int = 0, **body: Any) -> str:
    """The text of a choice that max_tokens ends after so many tokens."""
    if not shown:
        return ""
    said = await ask(client, "/v1/generate", **{**body, "max_tokens": shown, "steering": {"method": "base"}})
    return str(said["choices"][index]["text"])


async def test_every_endpoint_says_where_it_ended_and_shows_nothing_after(state: ServerState) -> None:
    rng = random.Random(fresh_seed())
    body = {"prompt": "what is good", "n": 3, "seed": rng.getrandbits(30), "max_tokens": 16, **NO_END}
    async with client_of(state) as client:
        free = await _traced(client, **body)
        values = [[token["monitors"]["score-positive"] for token in choice["tokens"]] for choice in free]
        above = bound(values[0], rng)
        monitor = {"value": "score-positive", "above": above, "for": 2, "hold": 3}
        ends = [ends_at(own, above, 2, 3) for own in values]
        stopped = [(index, at) for index, (at, _) in enumerate(ends) if at is not None]
        steering = with_monitor(monitor)
        whole = await ask(client, "/v1/generate", **body, steering=steering, logprobs=True)
        for index, (choice, other, (at, shown)) in enumerate(zip(whole["choices"], free, ends, strict=True)):
            assert choice["finish_reason"] == ("length" if at is None else "content_filter")
            assert [t["id"] for t in choice["tokens"]] == [t["id"] for t in other["tokens"][:shown]]
            assert choice["text"] == await _cut(client, shown, index, **body)
        said = whole["steering"]["monitor"]
        house = {"name": "house", "value": MONITOR, "above": FAMILYS["above"], "for": 5, "hold": 2}
        assert said["monitors"] == [house, {"name": "score-positive", **monitor}]
        assert (await client.get("/v1/families/tiny")).json()["monitors"] == [house]
        assert [(entry["index"], entry["token"]) for entry in said["stopped"]] == stopped
        for entry in said["stopped"]:
            assert entry["value"] == pytest.approx(values[entry["index"]][entry["token"] - 1], abs=1e-4)
        assert sum("monitor score-positive ended" in text for text in whole["steering"]["warnings"]) == len(stopped)
        assert whole["usage"]["completion_tokens"] == sum(shown for _, shown in ends)
        assert Generation.model_validate(whole).steering.monitor is not None
        # Streamed: nothing of what came later stands anywhere in the body.
        reply = await client.post("/v1/generate", json={**body, "steering": steering, "stream": True})
        *tokens, last, _ = events_of(reply.text)
        for index, (_, shown) in enumerate(ends):
            own = [event["token"]["id"] for event in tokens if event["index"] == index]
            assert own == [t["id"] for t in free[index]["tokens"][:shown]]
        assert last["steering"]["monitor"] == said
        legacy = await ask(client, "/v1/completions", **body, steering=steering, logprobs=0)
        for choice, other in zip(legacy["choices"], whole["choices"], strict=True):
            assert choice["text"] == other["text"] and choice["finish_reason"] == other["finish_reason"]
            offsets = choice["logprobs"]["text_offset"]
            assert len(offsets) == len(choice["logprobs"]["tokens"]) == len(other["tokens"])
        metrics = (await client.get("/metrics")).text
    if stopped:
        assert 'ladle_monitor_trips_total{monitor="score-positive"}' in metrics
        assert 'finished_reason="content_filter"' in metrics


@pytest.mark.parametrize("stream", [False, True])
async def test_conversations_in_the_words_of_each_api(state: ServerState, family: Family, stream: bool) -> None:
    rng = random.Random(fresh_seed())
    seed = rng.getrandbits(30)
    shared: dict[str, Any] = {"messages": MESSAGES, **NO_END, "seed": seed}
    async with client_of(state) as client:
        (free,) = await _traced(client, **shared, max_tokens=16)
        values = [token["monitors"]["score-positive"] for token in free["tokens"]]
        above = bound(values, rng)
        at, shown = ends_at(values, above, 1, 4)
        assert at is not None
        text = await _cut(client, shown, **shared)
        steering = with_monitor({"value": "score-positive", "above": above, "hold": 4})
        chat = {**shared, "max_tokens": 16, "steering": steering, "logprobs": True, "stream": stream}
        replied = await client.post("/v1/chat/completions", json=chat)
        if stream:
            *chunks, _ = events_of(replied.text)
            parts = [chunk["choices"][0] for chunk in chunks]
            assert "".join(part["delta"].get("content") or "" for part in parts) == text
            content = [entry for part in parts for entry in (part["logprobs"] or {"content": []})["content"]]
            reason, told = parts[-1]["finish_reason"], chunks[-1]["steering"]
        else:
            (choice,) = replied.json()["choices"]
            assert choice["message"]["content"] == text
            content = choice["logprobs"]["content"]
            reason, told = choice["finish_reason"], replied.json()["steering"]
        assert reason == "content_filter" and len(content) == shown
        assert [entry["token"] for entry in told["monitor"]["stopped"]] == [at]
        # Anthropic's and the Responses API have no seed and no bias: greedy, and whatever comes.
        greedy = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12}
        (free,) = await _traced(client, **greedy)
        values = [token["monitors"]["score-positive"] for token in free["tokens"]]
        above = bound(values, rng)
        at, shown = ends_at(values, above, 1, 2)
        text = await _cut(client, shown, **greedy)
        # One token is held for this bound, but two for the family's.
        steering = with_monitor({"value": "score-positive", "above": above, "hold": 1})
        body = {**greedy, "model": family.name, "stream": stream, "steering": steering}
        replied = await client.post("/v1/messages", json=body)
        if stream:
            events = named_events_of(replied.text)
            assert "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta") == text
            (reason,) = [e["delta"]["stop_reason"] for e in events if e["type"] == "message_delta"]
        else:
            assert "".join(part["text"] for part in replied.json()["content"]) == text
            reason = replied.json()["stop_reason"]
        assert reason == "refusal"
        body = {"input": "what is good", "temperature": 0, "max_output_tokens": 12, "stream": stream}
        replied = await client.post("/v1/responses", json={**body, "steering": steering})
        last = replied.json() if not stream else named_events_of(replied.text)[-1]["response"]
        assert last["status"] == "incomplete" and last["incomplete_details"] == {"reason": "content_filter"}
        assert "".join(part["text"] for part in last["output"][-1]["content"]) == text
        assert last["output"][-1]["status"] == "incomplete"


async def test_the_familys_own_monitor_holds_for_everybody_and_may_only_be_made_stricter(state: ServerState) -> None:
    body = {"prompt": "what is good", "max_tokens": 3, "seed": 1}
    async with client_of(state) as client:
        reply = await ask(client, "/v1/generate", **body)
        (said,) = reply["steering"]["monitor"]["monitors"]
        assert said == {"name": "house", "value": MONITOR, "above": FAMILYS["above"], "for": 5, "hold": 2}
        for given, found in (
            ({"above": 0.5}, {"above": 0.5, "for": 5, "hold": 2}),
            ({"for": 1, "hold": 9}, {"above": FAMILYS["above"], "for": 1, "hold": 9}),
            ({}, {"above": FAMILYS["above"], "for": 5, "hold": 2}),
        ):
            steering = {"monitor": {"value": MONITOR, **given}}
            (said,) = (await ask(client, "/v1/generate", **body, steering=steering))["steering"]["monitor"]["monitors"]
            assert said == {"name": "house", "value": MONITOR, **found}
        for given, field in (({"above": 0.9999999}, "above"), ({"for": 6}, "for"), ({"hold": 1}, "hold")):
            for path in ("/v1/generate", "/v1/completions"):
                asked = {"monitor": {"value": MONITOR, **given}}
                error = await ask(client, path, 400, **body, steering=asked)
                assert error["param"] == f"steering.monitor.{field}"
                assert "monitor house of the family holds for every request" in error["message"]
        # Beside whole blocks nothing can be watched: the family's monitor goes before the method's option.
        blocks = {"method": "cd", "preference": PREFERENCE, "block_length": 4}
        error = await ask(client, "/v1/generate", 400, **body, steering=blocks)
        assert error["param"] == "steering.block_length" and "monitor house" in error["message"]


@pytest.mark.parametrize(
    ("monitor", "field", "words"),
    [
        ({"value": "nobody", "above": 1}, "value", "score-positive"),
        ({"value": "tuned-positive", "above": 1}, "value", "score-positive"),
        ({"value": "score-positive"}, "above", "a number"),
        ({"value": "score-positive", "above": "much"}, "above", "a number"),
        ({"value": "score-positive", "above": 1, "for": 0}, "for", "a whole number"),
        ({"value": "score-positive", "above": 1, "hold": 513}, "hold", "512"),
        ({"value": "score-positive", "above": 1, "below": 2}, "below", "value, ask, above, for, hold"),
        ({"ask": "Is it bad?", "above": 1}, "above", "probability of yes"),
        ({"ask": " ", "above": 0.5}, "ask", "a question"),
        ({"ask": "Is it bad?", "value": "score-positive", "above": 0.5}, "", "one of value, ask"),
        ({"above": 0.5}, "", "one of value, ask"),
        (False, "", "an object"),
    ],
)
async def test_what_is_refused(state: ServerState, monitor: Any, field: str, words: str) -> None:
    async with client_of(state) as client:
        error = await ask(client, "/v1/generate", 400, prompt="a", max_tokens=1, steering={"monitor": monitor})
        part = {"schedule": [{"until": 1}, {"monitor": monitor}]}
        inside = await ask(client, "/v1/generate", 400, prompt="a", max_tokens=1, steering=part)
    assert error["param"] == ".".join(filter(None, ["steering.monitor", field])) and words in error["message"]
    assert inside["param"] == "steering.schedule.1.monitor" and "whole answer" in inside["message"]


@pytest.mark.parametrize("limit", [{}, {"max_tokens": 3}])
async def test_a_question_takes_room_in_the_context(state: ServerState, limit: dict[str, int]) -> None:
    steering = with_monitor({"ask": "bad " * 100, "above": 0.5})
    async with client_of(state) as client:
        error = await ask(client, "/v1/generate", 400, prompt="a " * 120, steering=steering, **limit)
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert "maximum context length is 512 tokens" in error["message"]
    assert "question of steering.monitor" in error["message"] and "room for 0" in error["message"]


async def test_questions_are_asked_at_the_ends_of_sentences(state: ServerState, family: Family) -> None:
    """Against the log-probabilities of yes and no behind the same text, as an echo gives them."""
    rng = random.Random(fresh_seed())
    question, seed = "Is this reply kind?", rng.getrandbits(30)
    body = {"prompt": "what is good", "max_tokens": 150, "seed": seed, "temperature": 1.5, **NO_END}
    async with client_of(state) as client:
        steering = with_monitor({"ask": question, "above": 0.9999}, trace=True)
        (choice,) = (await ask(client, "/v1/generate", **body, steering=steering))["choices"]
        prompt = (await ask(client, "/tokenize", prompt="what is good"))["tokens"]
        tokens = choice["tokens"]
        asked = [(i, t["monitors"]["ask"]) for i, t in enumerate(tokens, start=1) if "ask" in t["monitors"]]
        assert len(asked) >= 2 and asked[-1][0] == len(tokens) == 150
        assert max(b - a for (a, _), (b, _) in zip([(0, 0.0), *asked], asked, strict=False)) <= 64
        suffix = (await ask(client, "/tokenize", prompt=f"\n\n{question} Answer with yes or no.\nAnswer:"))["tokens"]
        for count, probability in rng.sample(asked, 2):
            before = [*prompt, *(t["id"] for t in tokens[:count]), *suffix]
            if max(before) >= 300:
                continue  # the model has more rows than the tokenizer has tokens; no request may send these
            likely = []
            words = [(await ask(client, "/tokenize", prompt=word))["tokens"] for word in (" Yes", " No")]
            alike = next(i for i, (a, b) in enumerate(zip(*words, strict=False)) if a != b)
            before += words[0][:alike]
            for first in (word[alike] for word in words):
                echo = await ask(
                    client, "/v1/completions", prompt=[*before, first], echo=True, logprobs=0, max_tokens=0,
                    steering={"method": "base"},
                )  # fmt: skip
                likely.append(echo["choices"][0]["logprobs"]["token_logprobs"][-1])
            assert probability == pytest.approx(1 / (1 + math.exp(likely[1] - likely[0])), abs=1e-4)
        # The sentence that is too much never leaves, nor does what came after it.
        worst = max(value for _, value in asked[:-1])
        place = next(i for i, (_, value) in enumerate(asked) if value >= worst)
        steering = with_monitor({"ask": question, "above": worst - 1e-6})
        (ended,) = (await ask(client, "/v1/generate", **body, steering=steering, logprobs=True))["choices"]
        first = next(i for i, (_, value) in enumerate(asked) if value > worst - 1e-6)
        assert first == place and ended["finish_reason"] == "content_filter"
        shown = asked[first - 1][0] if first else 0
        assert [t["id"] for t in ended["tokens"]] == [t["id"] for t in tokens[:shown]]
        # In a conversation it is the user's next turn.
        chat = {"messages": MESSAGES, "max_tokens": 5, "seed": seed}
        reply = await ask(client, "/v1/chat/completions", **chat, steering=steering)
        assert reply["steering"]["monitor"]["monitors"][1]["ask"] == question


async def test_forms_thoughts_and_rankings_are_watched_as_well(state: ServerState) -> None:
    rng = random.Random(fresh_seed())
    steering = with_monitor({"value": "score-positive", "above": 1e9, "hold": 4})
    at_once = with_monitor({"value": "score-positive", "above": -1e9})
    form = {"structured_outputs": {"regex": "[a-c]{4,12}"}}
    body = {"prompt": "what is good", "seed": rng.getrandbits(30), "max_tokens": 20}
    async with client_of(state) as client:
        for more in (form, {"stop": ["a", "e"]}, {"n": 2, **form}):
            free = await ask(client, "/v1/generate", **body, **more, steering={"method": "base"})
            own = await ask(client, "/v1/generate", **body, **more, steering=steering)
            assert own["choices"] == free["choices"] and own["usage"] == free["usage"]
            nothing = await ask(client, "/v1/generate", **body, **more, steering=at_once, logprobs=True)
            for choice in nothing["choices"]:
                assert (choice["text"], choice["tokens"]) == ("", []) and choice["finish_reason"] == "content_filter"
        ranked = {**body, **NO_END, "n": 3}
        every = await ask(
            client, "/v1/generate", **ranked, steering={**steering, "rank": {"by": "likelihood", "keep": 3}}
        )
        free = await ask(
            client, "/v1/generate", **ranked, steering={"method": "base", "rank": {"by": "likelihood", "keep": 3}}
        )
        assert every["choices"] == free["choices"]
        # What is only judged, or not written at all, is not watched.
        scored = await ask(
            client, "/v1/score", prompt="what", texts=["good"], by="explicit", steering={"preference": PREFERENCE}
        )
        echo = await ask(client, "/v1/completions", prompt="abc", echo=True, max_tokens=0, logprobs=0)
    assert scored["scores"] and echo["choices"][0]["finish_reason"] == "length"


async def test_where_nothing_is_written_a_monitor_is_refused_or_described(state: ServerState) -> None:
    monitor = {"value": "score-positive", "above": 3, "for": 2}
    steering = with_monitor(monitor, preference=PREFERENCE)
    async with client_of(state) as client:
        for by in ("likelihood", "explicit"):
            error = await ask(client, "/v1/score", 400, prompt="a", texts=["b"], by=by, steering=steering)
            assert error["param"] == "steering.monitor" and "nothing is written" in error["message"]
        said = await ask(client, "/v1/coefficients", steering=steering)
        monitors = said.pop("monitor")["monitors"]
        assert monitors[-1] == {"name": "score-positive", "value": "score-positive", "above": 3, "for": 2, "hold": 2}
        assert [entry["name"] for entry in monitors] == ["house", "score-positive"]
        assert said == await ask(client, "/v1/coefficients", steering={"method": "base", "preference": PREFERENCE})
        rank = {"by": "explicit", "keep": 2}
        said = await ask(client, "/v1/coefficients", steering={"preference": PREFERENCE, "rank": rank})
        assert {name: said["rank"][name] for name in rank} == rank and said["rank"]["sources"]
        error = await ask(client, "/v1/coefficients", 400, steering=with_monitor({"value": "nobody", "above": 1}))
        assert error["param"] == "steering.monitor.value"
