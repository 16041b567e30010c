"""Prompts beside answers: learned from steps, bounded by the budget, never too little to go on with."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from seeds import fresh_seed
from tiny_engine import alone, build, family_of, make_request, serve

from ladle.merging.exceptions import InputError
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.schedule.prefill_pace import PrefillPace


def plan(decoding: int, *chunks: int) -> Any:
    return SimpleNamespace(decode=[None] * decoding, chunks=[SimpleNamespace(count=count) for count in chunks])


def test_a_step_takes_so_many_times_what_it_takes_without_prompts() -> None:
    rng = random.Random(fresh_seed())
    decode, token = rng.uniform(0.005, 0.05), rng.uniform(0.0005, 0.001)
    for slowdown in (1.5, 2.0, 3.0, 5.0):
        pace = PrefillPace(slowdown)
        assert pace.room(512, 1) == 512, "nothing is known yet"
        for _ in range(20):
            pace.note(plan(3), decode)
            pace.note(plan(3, 100, 28), decode + 128 * token)
            pace.note(plan(0, 64), 64 * token)
        pace.note(plan(3), 9.0)  # something else had the machine
        room = pace.room(512, 1)
        assert room == 512 or room % 16 == 0
        assert min(512, 32) <= room <= max(32, decode * (slowdown - 1) / token + 1e-6)
        assert room + 16 > min(512, decode * (slowdown - 1) / token) or room == 512
        assert pace.room(512, 300) >= 300 and pace.room(20, 300) == 20


def test_without_it_the_budget_is_all() -> None:
    pace = PrefillPace(0)
    pace.note(plan(1), 0.01)
    pace.note(plan(1, 512), 10.0)
    assert pace.room(512, 1) == 512
    # A prompt that costs nothing beside what is read anyway, as on a large GPU.
    pace = PrefillPace(2)
    pace.note(plan(1), 0.01)
    pace.note(plan(1, 512), 0.01)
    assert pace.room(512, 1) == 512


@pytest.mark.parametrize("value", [-1.0, 0.5, 1.0, float("inf"), float("nan")])
def test_what_it_may_be(value: float) -> None:
    with pytest.raises(InputError, match="prefill_slowdown"):
        EngineConfig(prefill_slowdown=value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_how_a_prompt_is_cut_changes_no_token(tmp_path: Any, dtype: str) -> None:
    family = family_of(tmp_path)
    # A processor with a unit for products of many rows multiplies these otherwise than few, unless it is told not to.
    options: dict[str, Any] = {"dtype": dtype, "prefix_cache": False, "reproducible": dtype == "bfloat16"}
    rng = random.Random(fresh_seed())
    requests = [make_request(str(n), [rng.randrange(3, 60) for _ in range(40 * n + 3)], max_tokens=6) for n in range(5)]
    engine = build(family, **options)
    pace = engine.scheduler.pace = PrefillPace(2)
    pace.note(plan(1), 0.01)
    for _ in range(15):
        pace.note(plan(1, 16), 0.01 + 16 * 0.01)
    pace.note = lambda *step: None  # type: ignore[method-assign]
    together = serve(engine, requests, rng)
    whole = build(family, **options)
    for request in requests:
        wanted = alone(whole, request)
        assert [(o.token, o.logprob) for o in together[request.request_id]] == [(o.token, o.logprob) for o in wanted]
