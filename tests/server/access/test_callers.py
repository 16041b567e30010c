"""Limits of single callers: how many answers at once, how many tokens a minute, and when to come back."""

import asyncio
import hashlib
import json
import random
from pathlib import Path

import pytest
from asgi import Call, client_of, wait_until
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed

from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKeys
from ladle.server.access.callers import GENERATE, Caller, Limits, Meter
from ladle.server.api_errors import ApiError
from ladle.server.app import build_app
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
HI = [{"role": "user", "content": "hi"}]
PATHS = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/generate": {"prompt": "hi"},
}


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def caller(concurrent: int | None = None, tokens: int | None = None) -> tuple[Caller, Clock]:
    clock = Clock()
    return Caller("alice", frozenset({GENERATE}), Limits(concurrent, tokens), clock), clock


def waits(alice: Caller, code: str) -> int:
    with pytest.raises(ApiError) as caught:
        alice.check()
    assert caught.value.status_code == 429 and caught.value.code == code
    assert caught.value.headers is not None
    return int(caught.value.headers["Retry-After"])


def test_over_time_a_caller_gets_its_tokens_and_no_more() -> None:
    """Random requests, started as soon as they may: what was got in any long time is the rate, give or take one
    minute's worth and one request."""
    rng = random.Random(fresh_seed())
    rate = rng.randint(60, 6000)
    alice, clock = caller(tokens=rate)
    start, got, largest = clock.now, 0, 0
    while clock.now - start < 3600:
        try:
            alice.check()
        except ApiError as error:
            assert error.headers is not None
            wait = int(error.headers["Retry-After"])
            assert 1 <= wait <= 600
            clock.now += wait
            continue
        prompt, answer = rng.randint(1, rate), rng.randint(0, rate)
        with alice.using(1, prompt) as meter:
            for _ in range(10):
                meter.generated(answer // 10)
                clock.now += rng.uniform(0, 0.1)
        got += prompt + answer // 10 * 10
        largest = max(largest, prompt + answer)
    minutes = (clock.now - start) / 60
    assert rate * (minutes - 2) - largest <= got <= rate * (minutes + 1) + largest


def test_who_comes_back_when_told_is_let_in() -> None:
    rng = random.Random(fresh_seed())
    for _ in range(50):
        rate = rng.randint(10, 10_000)
        alice, clock = caller(tokens=rate)
        with alice.using(1, rate + rng.randint(0, 5 * rate)) as meter:
            meter.generated(0)
        clock.now += waits(alice, "tokens_per_minute")
        alice.check()


def test_what_got_nothing_costs_nothing() -> None:
    alice, _ = caller(tokens=100)
    for _ in range(50):
        with alice.using(1, 90):
            pass
        with pytest.raises(RuntimeError), alice.using(1, 90):
            raise RuntimeError
    alice.check()


def test_answers_at_once() -> None:
    alice, clock = caller(concurrent=3)
    with alice.using(2, 5):
        alice.check()
        with pytest.raises(ApiError), alice.using(2, 5):
            pass
        with alice.using(1, 5):
            assert waits(alice, "too_many_at_once") >= 1
            clock.now += 40
    assert alice.running == 0
    with alice.using(3, 5):
        assert waits(alice, "too_many_at_once") > 1, "requests take long here"
    with pytest.raises(ApiError) as caught, alice.using(4, 5):
        pass
    assert caught.value.status_code == 400 and caught.value.param == "n"


def lines(**limits: str) -> str:
    return "".join(
        f"{name} sha256:{hashlib.sha256(name.encode()).hexdigest()} {options}\n" for name, options in limits.items()
    )


def locked(family: Family, engine: FakeEngine, folder: Path, **limits: str) -> ServerState:
    (folder / "keys").write_text(lines(**limits))
    state = fake_state(family, engine)
    state.keys = ApiKeys.read(folder / "keys")
    return state


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_one_caller_at_its_limit_holds_up_nobody_else(
    family: Family, engine: FakeEngine, tmp_path: Path, path: str, stream: bool
) -> None:
    state = locked(family, engine, tmp_path, alice="concurrent=2", bob="concurrent=2")
    engine.hold_after = 1
    body = json.dumps({**PATHS[path], "stream": stream, "n": 2}).encode()
    call = Call(build_app(state), path, body, bearer("alice"))
    await wait_until(lambda: len(engine.running) == 2)
    engine.hold_after = None
    async with client_of(state) as client:
        refused = await client.post(path, json={**PATHS[path], "stream": stream}, headers=bearer("alice"))
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "too_many_at_once"
        assert (await client.post(path, json=PATHS[path], headers=bearer("bob"))).status_code == 200
        never = await client.post(path, json={**PATHS[path], "n": 3}, headers=bearer("bob"))
        assert never.status_code == 400 and never.json()["error"]["param"] == "n"
        call.leave()
        await asyncio.wait_for(call.task, 60)
        assert (await client.post(path, json=PATHS[path], headers=bearer("alice"))).status_code == 200
    value = state.metrics.registry.get_sample_value("ladle_admission_rejections_total", {"reason": "too_many_at_once"})
    assert value == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_tokens_of_prompt_and_answer_are_paid_for(
    family: Family, tmp_path: Path, path: str, stream: bool
) -> None:
    engine = FakeEngine("Hello, gentle rain. " * 4)
    state = locked(family, engine, tmp_path, alice="tokens_per_minute=1", bob="")
    async with client_of(state) as client:
        engine.capacity = 0
        for _ in range(30):
            full = await client.post(path, json=PATHS[path], headers=bearer("alice"))
            assert full.json()["error"]["code"] == "queue_full"
        engine.capacity = None
        first = await client.post(
            path, json={**PATHS[path], "max_tokens": 20, "stream": stream}, headers=bearer("alice")
        )
        assert first.status_code == 200, "refusals were free, and a debt may be made"
        refused = await client.post(path, json=PATHS[path], headers=bearer("alice"))
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "tokens_per_minute"
        # More than 20 tokens, at one a minute.
        assert int(refused.headers["retry-after"]) == 600
        assert (await client.post(path, json=PATHS[path], headers=bearer("bob"))).status_code == 200


async def test_limits_of_a_request(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine, max_choices=3, max_request_tokens=40)) as client:
        for path, body, field in (
            ("/v1/chat/completions", {"messages": HI, "n": 4, "max_tokens": 1}, "n"),
            ("/v1/completions", {"prompt": "hi", "n": 4, "max_tokens": 1}, "n"),
            ("/v1/completions", {"prompt": ["hi", "ho"], "n": 2, "max_tokens": 1}, "n"),
            ("/v1/completions", {"prompt": ["hi"] * 4, "max_tokens": 1}, "prompt"),
            ("/v1/generate", {"prompt": "hi", "n": 4, "max_tokens": 1}, "n"),
            ("/v1/generate", {"prompt": "hi", "n": 3, "max_tokens": 13}, "max_tokens"),
            ("/v1/generate", {"prompt": "hi", "max_tokens": 40}, "max_tokens"),
            ("/v1/generate", {"prompt": "hi"}, "max_tokens"),
            ("/v1/chat/completions", {"messages": HI, "max_completion_tokens": 40}, "max_completion_tokens"),
        ):
            response = await client.post(path, json=body)
            assert response.status_code == 400 and response.json()["error"]["param"] == field, response.text
        assert not engine.requests
        fits = await client.post("/v1/generate", json={"prompt": "hi", "max_tokens": 20})
        assert fits.status_code == 200


def test_who_leaves_early_pays_for_what_was_computed() -> None:
    """Of a prompt that was paid for at once, what was neither read nor computed is given back, and no more."""
    rng = random.Random(fresh_seed())
    for _ in range(50):
        alice, _ = caller(tokens=100_000)
        read, more, computed = rng.randint(0, 500), rng.randint(0, 500), rng.randint(0, 2000)
        meter = Meter(alice)
        meter.read(read)
        assert alice._tokens == 100_000 - read, "as it is read"
        with alice.using(1, read + more, meter):
            meter.computed = lambda computed=computed: computed  # type: ignore[misc]
            assert alice._tokens == 100_000 - read - more
        assert alice._tokens == 100_000 - max(read, computed)
        with alice.using(1, 1000, refused := Meter(alice)):
            refused.refuse()
        assert alice._tokens == 100_000 - max(read, computed), "the server had no room"


def test_a_request_is_not_held_up_by_what_it_paid_itself() -> None:
    alice, _ = caller(tokens=100)
    own = Meter(alice)
    own.read(300)
    with alice.using(1, 300, own) as meter:
        meter.generated(0)
        assert waits(alice, "tokens_per_minute") > 1
        with pytest.raises(ApiError), alice.using(1, 5, Meter(alice)):
            pass
    assert alice._tokens == -200


@pytest.mark.parametrize("path", PATHS)
async def test_what_guidance_multiplies_is_paid_for(
    family: Family, engine: FakeEngine, tmp_path: Path, path: str
) -> None:
    """Every source of a plan, and of a traced one the base besides."""
    costs = []
    for steering in ({"method": "base"}, {"method": "cfg", "negative_prompt": "Be dull.", "strength": 1.5}):
        state = locked(family, engine, tmp_path, alice="tokens_per_minute=1000")
        async with client_of(state) as client:
            body = {**PATHS[path], "max_tokens": 4, "steering": steering}
            answer = await client.post(path, json=body, headers=bearer("alice"))
            assert answer.status_code == 200, answer.text
        assert state.keys is not None
        alice = state.keys.find("alice")
        assert alice is not None
        costs.append((1000 - alice._tokens, answer.json()["usage"], engine.requests[-1]))
    (plain, usage, _), (guided, _, request) = costs
    assert plain == pytest.approx(usage["prompt_tokens"] + 4, abs=2)
    prompts = sum(len(request.prompt_of(source)) for source in request.plan.sources)
    assert guided == pytest.approx(prompts + 8, abs=2) and len(request.plan.sources) == 2
