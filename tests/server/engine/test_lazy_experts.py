"""Experts that compute their tokens late say what experts say that compute every token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from routed_folder import EXPERTS, write_routed_family
from seeds import fresh_seed
from tiny_engine import Collector, assert_idle, build, drain, random_prompt, serve

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.model_runner import StepResult
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.schedule.step_plan import StepPlan

NAMES = EXPERTS[:3]


def family_of(folder: Path, rng: random.Random, full: Sequence[str] = ("math", "json")) -> Family:
    return load_family(write_routed_family(folder, seed=rng.randrange(1000), defer=True, full=full))


def requests_of(
    family: Family, rng: random.Random, count: int, shortest: int = 1, longest: int = 60
) -> list[GenerationRequest]:
    found = []
    for index in range(count):
        steering: dict[str, Any] = rng.choice(
            [
                {"method": "fusion_route"},
                {"method": "fusion_route", "complement": 0.0, "min_stay": rng.randint(2, 4)},
                {"method": "fusion_route", "top_experts": 2, "trace": rng.random() < 0.5},
                {"method": "co_llm", "threshold": rng.uniform(0.3, 0.7)},
            ]
        )
        prompt = random_prompt(rng, shortest, longest)
        sampling = SamplingParams(
            max_tokens=rng.randint(5, 30), temperature=rng.choice([0.0, 1.0]), seed=index, ignore_eos=True
        )
        found.append(GenerationRequest(str(index), prompt, resolve(family, Steering.parse(steering)), sampling, {}))
    return found


def numbers(outputs: Sequence[StepOutput]) -> list[tuple[Any, ...]]:
    return [(o.token, o.logprob, o.expert, o.trace, o.text, o.finish_reason) for o in outputs]


def late(engine: Engine) -> dict[str, int]:
    return dict(engine.stats().catch_up_tokens)


def test_lazy_is_eager_bit_for_bit(tmp_path: Path) -> None:
    """Also with short steps, in which a catch-up takes several, and with prefixes that others have computed."""
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, rng)
    requests = requests_of(family, rng, 7)
    eager = build(family, expert_schedule="eager", max_lanes=80)
    expected = {name: numbers(found) for name, found in serve(eager, requests, rng).items()}
    assert not any(late(eager).values())
    for options in (
        {"expert_schedule": "auto"},
        {"expert_schedule": "lazy", "prefix_cache": False},
        {"expert_schedule": "lazy", "max_batch_tokens": 1, "max_sequences": 3, "max_lanes": 16},
    ):
        engine = build(family, **{"max_lanes": 80, **options})
        found = {name: numbers(outputs) for name, outputs in serve(engine, requests, rng).items()}
        assert found == expected, options
        assert any(late(engine).values())
        if options["expert_schedule"] == "auto":
            assert late(engine)["chat"] == 0, "an expert in the bank is a row of the router's forward"


def test_lazy_is_eager_where_memory_is_short(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, rng, NAMES)
    requests = [
        GenerationRequest(
            str(index), random_prompt(rng, 20, 40), resolve(family, Steering.parse({"method": "fusion_route"})),
            SamplingParams(max_tokens=40, temperature=1.0, seed=index, ignore_eos=True), {},
        )
        for index in range(6)
    ]  # fmt: skip
    eager = build(family, expert_schedule="eager", prefix_cache=False)
    expected = {name: numbers(found) for name, found in serve(eager, requests).items()}
    blocks = -(-(8 << 20) // eager.blocks.total)
    tight = build(family, kv_memory=50 * blocks, prefix_cache=rng.random() < 0.5)
    found = serve(tight, requests)
    assert tight.stats().preemptions > 0
    assert {name: numbers(outputs) for name, outputs in found.items()} == expected


def test_who_leaves_in_the_middle_of_a_catch_up_takes_nothing_along(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, rng, NAMES)
    requests = requests_of(family, rng, 6, 100, 200)
    whole = build(family, max_lanes=80)
    expected = {name: numbers(found) for name, found in serve(whole, requests).items()}
    engine = build(family, max_lanes=24, max_sequences=5, max_batch_tokens=1)  # as short as steps can be
    steps, behind = engine.runner.step, []

    def watched(plan: StepPlan) -> StepResult:
        result = steps(plan)
        behind.extend(sequence.request_id for sequence in result.caught_up.behind)
        return result

    engine.runner.step = watched  # type: ignore[method-assign]
    collector = Collector()
    for request in requests:
        engine.submit(request, collector)
    gone: set[str] = set()
    while len(gone) < 3:
        drain(engine, until=lambda: len(set(behind) - gone) > 0)
        if not set(behind) - gone:
            break
        gone.add(name := rng.choice(sorted(set(behind) - gone)))
        engine.cancel(name)
    drain(engine)
    assert_idle(engine)
    assert gone, "prompts are longer than a step"
    for name, wanted in expected.items():
        found = numbers(collector.outputs.get(name, []))
        assert found == wanted if name not in gone else found == wanted[: len(found)]


@pytest.mark.parametrize("schedule", ["auto", "lazy"])
def test_every_token_is_computed_once_at_most_and_counted_when_late(tmp_path: Path, schedule: str) -> None:
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, rng)
    engine = build(family, expert_schedule=schedule, prefix_cache=False)
    prompt, wanted, rows = random_prompt(rng, 5, 40), 40, []
    plan = resolve(family, Steering.parse({"method": "fusion_route"}))
    sampling = SamplingParams(max_tokens=wanted, temperature=1.0, seed=3, ignore_eos=True)
    collector = Collector()
    engine.submit(GenerationRequest("a", prompt, plan, sampling, {}), collector)
    while not collector.finished("a"):
        engine.step()
        rows.append(engine.stats().step_rows)
    lazy = NAMES if schedule == "lazy" else ("math", "json")
    computed, missed, total = dict.fromkeys(lazy, 0), dict.fromkeys(NAMES, 0), 0
    for position, output in enumerate(collector.outputs["a"]):
        length = len(prompt) + position
        if output.expert in computed:
            missed[output.expert] += length - computed[output.expert] - 1
            total += length - computed[output.expert]
            computed[output.expert] = length
    assert late(engine) == missed
    always = (len(prompt) + wanted - 1) * (4 - len(lazy))
    assert sum(rows) == always + total


def test_a_prompt_that_an_expert_has_seen_is_not_computed_again(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, rng, NAMES)
    engine = build(family)
    prompt = random_prompt(rng, 100, 120)
    plan = resolve(family, Steering.parse({"method": "fusion_route", "min_stay": 30}))

    def ask(name: str) -> dict[str, int]:
        before = late(engine)
        sampling = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
        serve(engine, [GenerationRequest(name, prompt, plan, sampling, {})])
        return {expert: count - before[expert] for expert, count in late(engine).items()}

    first, again = ask("a"), ask("b")
    assert sum(first.values()) == len(prompt) - 1
    assert sum(again.values()) == (len(prompt) - 1) % 16


def test_an_unknown_schedule_is_refused(family: Family) -> None:
    with pytest.raises(InputError, match=r"expert_schedule.*auto, eager, lazy"):
        build(family, expert_schedule="never")
