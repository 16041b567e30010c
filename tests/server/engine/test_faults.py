"""What goes wrong with one request, one listener or one step costs nobody else anything."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from seeds import fresh_seed
from tiny_engine import (
    Collector,
    alone,
    assert_idle,
    build,
    drain,
    family_of,
    make_request,
    random_prompt,
    serve,
    wait_for,
)

from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.queue import QueueFull
from ladle.server.engine.requests.request import StepOutput

PROMPT = tuple(range(10, 60))
SMALL_POOL = 14 * 16 * 2 * 2 * 2 * 8 * 4  # 14 blocks


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_of(tmp_path_factory.mktemp("family"), "llama", 5)


@pytest.fixture
def running(family: Family) -> Iterator[Engine]:
    engine = build(family)
    engine.start()
    yield engine
    engine.shutdown()


def tokens(outputs: list[StepOutput]) -> list[int]:
    return [output.token for output in outputs]


# -- weights that explode ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}])
def test_scores_that_are_not_finite_end_their_request_only(family: Family, sampling: dict[str, Any]) -> None:
    rng = random.Random(fresh_seed())
    engine = build(family, kv_memory=SMALL_POOL, prefix_cache=False)
    prompt = random_prompt(rng, 20, 40)
    good = make_request("good", prompt, {"bone-positive": 0.5}, max_tokens=12, ignore_eos=True)
    expected = tokens(alone(engine, good))
    poison = make_request("bad", prompt, {"bone-positive": 1e30}, max_tokens=12, **sampling)
    together = serve(engine, [good, poison])
    assert tokens(together["good"]) == expected
    assert together["bad"][-1].finish_reason == "error" and "not finite" in (together["bad"][-1].error or "")
    # Its blocks hold NaN now, and the pool is small enough that they are handed out again.
    for _ in range(4):
        assert tokens(alone(engine, good)) == expected


def test_blocks_of_a_cancelled_poisonous_prefill_are_clean_again(family: Family) -> None:
    rng = random.Random(fresh_seed())
    engine = build(family, kv_memory=SMALL_POOL, max_sequences=4, max_batch_tokens=1, prefix_cache=False)
    good = make_request("good", random_prompt(rng, 20, 40), {}, max_tokens=12, ignore_eos=True)
    expected = tokens(alone(engine, good))
    engine.submit(make_request("bad", random_prompt(rng, 150, 150), {"bone-positive": 1e30}), Collector())
    engine.step()
    engine.step()
    engine.cancel("bad")
    for _ in range(3):
        assert tokens(alone(engine, good)) == expected


# -- requests that cannot run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": ()}, "prompt"),
        ({"prompt": (5, -1)}, "prompt"),
        ({"prompt": (5, 10**6)}, "prompt"),
        ({"prompt": tuple([5] * 600)}, "prompt"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"logit_bias": ((10**6, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias"),
    ],
)
def test_impossible_requests_are_refused_at_once(family: Family, changes: dict[str, Any], field: str) -> None:
    engine = build(family)
    options = {"prompt": PROMPT, **changes}
    prompt = options.pop("prompt")
    with pytest.raises(InputError) as caught:
        engine.submit(make_request("r", prompt, **options), Collector())
    assert caught.value.field == field
    assert_idle(engine)


def test_traced_request_too_large_for_the_pool(family: Family) -> None:
    """Two lanes need twice the blocks; alone the request fits."""
    engine = build(family, kv_memory=SMALL_POOL)
    prompt = PROMPT * 2
    with pytest.raises(InputError, match="2 lanes"):
        engine.submit(make_request("r", prompt, {"bone-positive": 1.0}, max_tokens=30, trace=True), Collector())
    assert len(alone(engine, make_request("r", prompt, {"bone-positive": 1.0}, max_tokens=30, ignore_eos=True))) == 30


def test_longest_possible_request_runs(family: Family) -> None:
    engine = build(family, kv_memory=SMALL_POOL)
    prompt = random_prompt(random.Random(fresh_seed()), engine.max_context - 1, engine.max_context - 1)
    assert len(alone(engine, make_request("r", prompt, max_tokens=1))) == 1
    outputs = alone(engine, make_request("r", prompt[:3], max_tokens=engine.max_context - 3, ignore_eos=True))
    assert len(outputs) == engine.max_context - 3


def test_full_queue(family: Family) -> None:
    engine = build(family, max_queue=3)
    collector = Collector()
    for index in range(3):
        engine.submit(make_request(f"r{index}", PROMPT), collector)
    with pytest.raises(QueueFull) as caught:
        engine.submit(make_request("r3", PROMPT), collector)
    assert 1 <= caught.value.retry_after_s <= 60
    engine.cancel("r0")  # cancellations are no requests
    drain(engine)
    engine.submit(make_request("r3", PROMPT), collector)
    drain(engine)
    assert collector.finished("r3") and "r0" not in collector.outputs
    assert_idle(engine)


def test_an_id_in_use_is_refused_and_its_owner_goes_on(family: Family) -> None:
    engine = build(family)
    first, second = Collector(), Collector()
    engine.submit(make_request("same", PROMPT, max_tokens=6, ignore_eos=True), first)
    engine.step()
    engine.submit(make_request("same", PROMPT, max_tokens=6), second)
    drain(engine)
    assert len(first.tokens("same")) == 6 and first.reason("same") == "length"
    assert second.reason("same") == "error" and len(second.outputs["same"]) == 1
    assert_idle(engine)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"device": "cuda:99"}, "device"),
        ({"device": "meta"}, "device"),
        ({"device": "toaster"}, "device"),
        ({"kv_memory": 1000}, "kv_memory"),
        ({"kv_memory": 0}, "kv_memory"),
        ({"max_context": 10**9}, "max_context"),
        ({"max_sequences": 0}, "max_sequences"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_impossible_settings(family: Family, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        build(family, **options)
    assert caught.value.field == field


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancel_anywhere(family: Family) -> None:
    """Waiting, in prefill, in decode, twice, unknown, finished; the others are not disturbed."""
    rng = random.Random(fresh_seed())
    engine = build(family, max_sequences=3, max_batch_tokens=1)
    other = make_request("other", random_prompt(rng, 10, 40), {"bone-positive": 0.3}, max_tokens=30, ignore_eos=True)
    expected = tokens(alone(engine, other))
    for steps in [0, 1, 2, 3, 5, 8, 12, 20]:
        collector = Collector()
        engine.submit(other, collector)
        victims = [f"v{i}" for i in range(6)]
        for name in victims:
            traced = rng.random() < 0.5
            engine.submit(make_request(name, random_prompt(rng, 5, 150), {"bone-simple": 1.0}, trace=traced), collector)
        for _ in range(steps):
            engine.step()
        given = {name: len(collector.outputs.get(name, [])) for name in victims}
        done = {name for name in victims if collector.finished(name)}
        for name in [*victims, *victims, "nobody"]:
            engine.cancel(name)
        engine.step()
        engine.check_integrity()
        assert engine.stats().waiting == 0 and engine.stats().running <= 1, "freed within one step"
        drain(engine)
        assert {name: len(collector.outputs.get(name, [])) for name in victims} == given, "output after cancelling"
        assert all(collector.reason(name) in ("stop", "length") for name in done)
        assert tokens(collector.outputs["other"]) == expected
        assert_idle(engine)


# -- steps and listeners that fail ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["runner", "sampler"])
def test_a_failing_step_ends_its_requests_only(family: Family, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    engine = build(family, max_sequences=2)
    request = make_request("r", PROMPT, {"bone-positive": 0.4}, max_tokens=6, ignore_eos=True)
    expected = tokens(alone(engine, request))
    target, name = (engine.runner, "step") if where == "runner" else (engine.sampler, "admit")
    real, failures = getattr(target, name), [RuntimeError("no luck")]

    def once(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(target, name, once)
    collector = Collector()
    for index in range(4):  # two run and fail, two wait and live
        again = make_request(f"r{index}", PROMPT, {"bone-positive": 0.4}, max_tokens=6, ignore_eos=True)
        engine.submit(again, collector)
    drain(engine)
    for name in ("r0", "r1"):
        assert collector.reason(name) == "error" and "RuntimeError" in (collector.outputs[name][-1].error or "")
    for name in ("r2", "r3"):
        assert tokens(collector.outputs[name]) == expected
    assert_idle(engine)


def test_a_listener_that_raises_loses_its_requests_only(running: Engine) -> None:
    def broken(outputs: list[StepOutput]) -> None:
        raise ValueError("gone")

    collector = Collector()
    running.submit(make_request("bad", PROMPT, max_tokens=200, ignore_eos=True), broken)
    running.submit(make_request("good", PROMPT, max_tokens=8, ignore_eos=True), collector)
    wait_for(lambda: collector.finished("good"))
    wait_for(lambda: running.stats().running == 0)
    assert running.alive
    running.submit(make_request("next", PROMPT, max_tokens=3, ignore_eos=True), collector)
    wait_for(lambda: collector.finished("next"))
    wait_for(lambda: not running._inbox)
    assert_idle(running)


def test_text_that_fails_ends_its_request_only(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    from ladle.server.engine.requests.detokenizer import Detokenizer

    engine = build(family)
    real = Detokenizer.push

    def push(self: Detokenizer, token: int, stops: bool = True) -> tuple[str, str, bool]:
        if self._stops._stops == ("broken",):
            raise ValueError("no text")
        return real(self, token, stops)

    monkeypatch.setattr(Detokenizer, "push", push)
    sent = [make_request(n, PROMPT, stop=(n,), max_tokens=5, ignore_eos=True) for n in ("broken", "whole")]
    outputs = serve(engine, sent)
    assert outputs["broken"][-1].finish_reason == "error"
    assert outputs["whole"][-1].finish_reason == "length"


def test_nobody_is_left_waiting_when_the_bookkeeping_fails(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(family)

    def schedule() -> None:
        raise AssertionError("inconsistent")

    monkeypatch.setattr(engine.scheduler, "schedule", schedule)
    collector = Collector()
    engine.submit(make_request("r", PROMPT), collector)
    engine.start()
    wait_for(lambda: not engine.alive)
    assert collector.reason("r") == "error"
    with pytest.raises(RuntimeError):
        engine.submit(make_request("s", PROMPT), collector)
    engine.shutdown()
