"""Bookkeeping that is looked over while nothing runs, and an engine that stops where it is wrong."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from tiny_engine import Collector, alone, assert_idle, build, drain, family_of, make_request, random_prompt, wait_for

from ladle.guidance.plan import Blocks, Plan, Source
from ladle.merging.exceptions import code_of
from ladle.merging.family.family import Family
from ladle.server.engine import engine as engine_module
from ladle.server.engine import led_requests
from ladle.server.engine.device.device import DeviceLost, require_working
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.answer import NOT_FINITE
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.stats.idle_check import IdleCheck

PROMPT = tuple(range(10, 60))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_of(tmp_path_factory.mktemp("family"), "llama", 5)


@pytest.fixture
def running(family: Family) -> Iterator[Engine]:
    engine = build(family)
    engine.idle = IdleCheck(engine.check_idle, every_s=0.0)
    engine.start()
    yield engine
    engine.shutdown()


# -- the check --------------------------------------------------------------------------------------------------------


def leak_block(engine: Engine) -> None:
    engine.blocks.allocate()


def lose_block(engine: Engine) -> None:
    engine.blocks._free.popitem()


def lose_row(engine: Engine) -> None:
    engine.scheduler.table._free.pop()


def double_row(engine: Engine) -> None:
    engine.scheduler.table._free[0] = engine.scheduler.table._free[1]


def lose_slot(engine: Engine) -> None:
    engine.scheduler._slots.pop()


def keep_request(engine: Engine) -> None:
    engine._sequences["ghost"] = (None, None, print)  # type: ignore[assignment]


DAMAGE = [leak_block, lose_block, lose_row, double_row, lose_slot, keep_request]


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_kind_of_damage_is_seen(family: Family, damage: Callable[[Engine], None]) -> None:
    engine = build(family)
    alone(engine, make_request("r", PROMPT))
    engine.check_idle()
    damage(engine)
    with pytest.raises(AssertionError):
        engine.check_idle()


def test_an_idle_engine_checks_itself_once(running: Engine) -> None:
    collector = Collector()
    assert running.idle_checks().passed == 0 and running.idle_checks().seconds_ago is None
    for round_ in range(3):
        running.submit(make_request(f"r{round_}", PROMPT), collector)
        wait_for(lambda name=f"r{round_}": collector.finished(name))
        wait_for(lambda round_=round_: running.idle_checks().passed > round_)
    seen = running.idle_checks()
    assert seen.seconds_ago is not None and seen.seconds_ago >= 0
    assert running.idle.due_in() is None, "nothing new to look at"


def test_checks_keep_their_distance() -> None:
    now, calls = 0.0, []
    check = IdleCheck(lambda: calls.append(now), every_s=10.0, clock=lambda: now)
    assert check.due_in() is None
    check.worked()
    assert check.due_in() == 0
    check.run()
    check.worked()
    now = 4.0
    assert check.due_in() == 6.0
    now = 11.0
    assert check.due_in() == 0
    check.run()
    assert calls == [0.0, 11.0] and check.seen().passed == 2
    now = 12.0
    assert check.seen().seconds_ago == 1.0


def test_an_engine_that_finds_damage_stops(running: Engine) -> None:
    """Nothing runs: whoever comes next would get another's state."""
    collector = Collector()
    running.submit(make_request("r", PROMPT), collector)
    wait_for(lambda: collector.finished("r"))
    wait_for(lambda: running.idle_checks().passed)
    leak_block(running)
    running.idle.worked()
    running.cancel("nobody")  # wakes it
    wait_for(lambda: not running.alive)
    with pytest.raises(RuntimeError):
        running.submit(make_request("s", PROMPT), collector)


# -- ends that everybody hears of -------------------------------------------------------------------------------------


def test_a_broken_engine_still_ends_every_request(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps count is broken, so that giving back fails too."""
    engine = build(family, max_sequences=2)
    collector = Collector()
    for index in range(4):
        engine.submit(make_request(f"r{index}", PROMPT, max_tokens=300, ignore_eos=True), collector)
    engine.step()

    def broken(*args: Any) -> None:
        raise AssertionError("inconsistent")

    monkeypatch.setattr(engine.scheduler, "finish", broken)
    monkeypatch.setattr(engine.scheduler, "advance", broken)
    engine.start()
    wait_for(lambda: not engine.alive)
    assert [collector.reason(f"r{index}") for index in range(4)] == ["error"] * 4


def test_an_engine_that_is_told_to_exit_ends_every_request(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """SystemExit is no Exception, and ends a thread without a word."""
    engine = build(family)
    collector = Collector()

    def leave(*args: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(engine.scheduler, "schedule", leave)
    engine.submit(make_request("r", PROMPT), collector)
    engine.start()
    wait_for(lambda: not engine.alive)
    assert collector.reason("r") == "error"


def test_a_request_that_cannot_begin_is_alone_in_that(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(family, max_queue=2)
    real = led_requests.Answer

    def answer(request: GenerationRequest, *rest: Any) -> Any:
        if request.request_id == "bad":
            raise ValueError("no answer")
        return real(request, *rest)

    monkeypatch.setattr(led_requests, "Answer", answer)
    collector = Collector()
    for name in ("bad", "good"):
        engine.submit(make_request(name, PROMPT, max_tokens=3, ignore_eos=True), collector)
    drain(engine)
    assert collector.reason("bad") == "error" and collector.reason("good") == "length"
    assert_idle(engine)
    assert engine.room.requests == 0, "its place in the queue is free"


@pytest.mark.parametrize("where", ["_value", "begin"])
def test_a_block_search_that_fails_says_so(family: Family, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A listener that fails loses its requests; behind this one there is somebody who waits."""
    from ladle.server.engine.block_search import BlockSearch

    def broken(self: BlockSearch) -> None:
        raise ValueError("no luck")

    monkeypatch.setattr(BlockSearch, where, broken)
    engine = build(family)
    source = Source("base", "base", 1.0, ())
    plan = Plan("test", None, None, (source,), "none", False, (), blocks=Blocks(2, 3))
    collector = Collector()
    engine.submit(GenerationRequest("search", PROMPT, plan, SamplingParams(max_tokens=6, ignore_eos=True)), collector)
    engine.submit(make_request("other", PROMPT, max_tokens=4, ignore_eos=True), collector)
    drain(engine)
    assert collector.reason("search") == "error" and collector.reason("other") == "length"
    assert not engine.led
    engine.check_idle()


def test_a_step_that_hangs_does_not_hold_up_a_shutdown(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    engine = build(family)
    inside, release = threading.Event(), threading.Event()
    real = engine.runner.step

    def stuck(*args: Any) -> Any:
        inside.set()
        assert release.wait(60)
        return real(*args)

    monkeypatch.setattr(engine.runner, "step", stuck)
    collector = Collector()
    engine.submit(make_request("r", PROMPT), collector)
    engine.start()
    assert inside.wait(60)
    engine.shutdown(patience_s=0.05)
    assert engine.alive
    release.set()
    engine.shutdown()
    assert not engine.alive and collector.finished("r")


# -- devices and weights ----------------------------------------------------------------------------------------------


def test_a_device_that_computes_no_more_stops_the_engine(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails is one thing; a CUDA context that is lost fails every step from then on."""
    require_working(torch.device("cpu"))

    def lost(device: torch.device) -> None:
        raise DeviceLost("an illegal memory access was encountered")

    def fails(*args: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    engine = build(family, max_sequences=1)
    monkeypatch.setattr(engine_module, "require_working", lost)
    monkeypatch.setattr(engine.runner, "step", fails)
    collector = Collector()
    for name in ("first", "second"):
        engine.submit(make_request(name, PROMPT), collector)
    engine.start()
    wait_for(lambda: not engine.alive)
    assert collector.reason("first") == "error"
    assert "DeviceLost" in (collector.outputs["second"][-1].error or "")


def test_who_is_to_blame_for_scores_that_are_no_numbers(family: Family) -> None:
    engine = build(family, prefix_cache=False)
    prompt = random_prompt(random.Random(fresh_seed()), 20, 40)
    asked = alone(engine, make_request("asked", prompt, {"bone-positive": 1e30}))[-1]
    assert code_of(asked.error) == NOT_FINITE
    with torch.no_grad():
        for parameter in engine.models.base.model.parameters():
            parameter.fill_(torch.nan)
    broken = alone(engine, make_request("plain", prompt))[-1]
    assert broken.finish_reason == "error" and code_of(broken.error) is None
