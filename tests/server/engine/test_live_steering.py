"""A running sequence goes on under another plan: what follows is what a fresh request would get, token for token."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from guided_requests import ROOMY, World
from routed_folder import write_routed_family
from routed_requests import request as routed
from routed_requests import steerings as routings
from seeds import continued_seed, fresh_seed
from tiny_engine import Collector, alone, assert_idle, build, drain, make_request, random_prompt, serve

from ladle.guidance.plan import Plan, ScheduledPlan
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.live_steering import steer
from ladle.server.engine.requests.request import GenerationRequest, StepOutput

METHODS = (
    "base",
    "rewarded_soup",
    "bone_soup",
    "mage",
    "mod",
    "proxy_tuning",
    "dexperts",
    "cfg",
    "args",
    "cd",
    "custom",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), random.Random(fresh_seed()), pblora=False)


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    return build(world.family, **ROOMY)


def _fresh(request: GenerationRequest, plan: Plan, said: Sequence[int], most: int) -> GenerationRequest:
    """A request for ``most`` tokens of what is left of the answer: the text so far is part of its prompt, in every
    view."""
    left = replace(request.sampling, max_tokens=most, seed=continued_seed(request.sampling.seed, len(said)))
    views = {view: (*ids, *said) for view, ids in request.views.items()}
    return replace(request, request_id="fresh", prompt=(*request.prompt, *said), plan=plan, sampling=left, views=views)


def _check_parts(engine: Engine, request: GenerationRequest, outputs: list[StepOutput]) -> list[int]:
    """Every part of an answer equals a fresh request; returns where the parts began."""
    tokens = [output.token for output in outputs]
    starts = [index for index, output in enumerate(outputs) if output.began is not None]
    plans = [request.plan, *(output.began for output in outputs if output.began is not None)]
    for plan, start, stop in zip(plans, [0, *starts], [*starts, len(tokens)], strict=True):
        bare = replace(plan, schedule=())
        expected = alone(engine, _fresh(request, bare, tokens[:start], stop - start))
        assert tokens[start:stop] == [output.token for output in expected], (plan.method, start, stop)
        assert [output.logprob for output in outputs[start:stop]] == pytest.approx(
            [output.logprob for output in expected], abs=1e-4
        )
    return starts


def test_every_part_equals_a_fresh_request(world: World, engine: Engine) -> None:
    """Scheduled and sudden changes among all kinds of methods, greedy and drawn, in one batch with others."""
    rng = random.Random(fresh_seed())
    steerings = [one for one in world.some_steerings(rng, 14, METHODS) if "block_length" not in one]
    collector, requests, sudden = Collector(), [], {}
    for index in range(6):
        first, second, third = rng.sample(steerings, 3)
        parts = [{"until": rng.randint(1, 6), **first}, {**second}] if index % 2 else [first]
        steering: dict[str, Any] = {"schedule": parts} if index % 2 else first
        prompts = world.prompts(rng)
        options = {"temperature": rng.choice([0.0, 1.0]), "repetition_penalty": rng.choice([1.0, 1.3])}
        request = world.request(f"r{index}", steering, prompts, max_tokens=14, seed=rng.getrandbits(60), **options)
        other = world.request(f"r{index}", third, prompts)
        later = replace(request, plan=other.plan, views=other.views)
        requests.append(replace(request, views={**request.views, **other.views}))
        sudden[request.request_id] = later
        engine.submit(requests[-1], collector)
    changes = {name: rng.randint(7, 10) for name in sudden if rng.random() < 0.8}
    found: dict[str, Any] = {}
    while not all(collector.finished(request.request_id) for request in requests):
        engine.step()
        engine.check_integrity()
        for name in [name for name in changes if len(collector.outputs.get(name, [])) >= changes[name]]:
            found[name] = steer(engine, [sudden[name]]), changes.pop(name)
    assert_idle(engine)
    for request in requests:
        outputs = collector.outputs[request.request_id]
        starts = _check_parts(engine, request, outputs)
        scheduled = [part.start for part in request.plan.schedule]
        future, when = found.get(request.request_id, (None, 0))
        assert starts == scheduled + ([future.result()[0]] if future else [])
        assert future is None or when <= future.result()[0] <= when + 1, "the next step knows of it"


def test_what_a_fresh_request_does_not_know_goes_on(engine: Engine, world: World) -> None:
    """Counts of tokens and the least length: with the same plan again an answer is as it was."""
    rng = random.Random(fresh_seed())
    prompt = random_prompt(rng, 5, 40)
    options = {"frequency_penalty": 1.5, "presence_penalty": 0.5, "min_tokens": 9, "max_tokens": 12, "seed": 5}
    request = make_request("r", prompt, {"bone-positive": 0.7}, **options)
    unchanged = alone(engine, request)
    again = replace(request, plan=replace(request.plan, schedule=(ScheduledPlan(4, request.plan),)))
    outputs = alone(engine, again)
    assert [output.token for output in outputs] == [output.token for output in unchanged]
    assert "".join(o.text for o in outputs) == "".join(o.text for o in unchanged)
    assert [index for index, output in enumerate(outputs) if output.began] == [4]


def test_only_the_new_part_is_computed_anew(engine: Engine) -> None:
    """A change is one prefill of the text so far; nothing else is computed twice, and others decode meanwhile."""
    rng = random.Random(fresh_seed())
    # No case before it began so: what the engine has cached of theirs is none of it.
    first, second = ((11, 13, start, *random_prompt(rng, 17, 17)) for start in (17, 19))
    request = make_request("r", first, {"bone-positive": 0.7}, max_tokens=10, ignore_eos=True)
    other = make_request("o", second, {}, max_tokens=20, ignore_eos=True)
    collector = Collector()
    engine.submit(request, collector)
    engine.submit(other, collector)
    drain(engine, lambda: len(collector.outputs.get("r", [])) == 5)
    before, told = len(collector.outputs["o"]), steer(engine, [replace(request, plan=make_request("", [], {}).plan)])
    engine.step()
    assert told.result() == [5] and len(collector.outputs["r"]) == 6, (
        "the first token after the change is there at once"
    )
    assert len(collector.outputs["o"]) == before + 1
    drain(engine)
    assert request.work.tokens == (20 + 4) + (20 + 5 + 4)
    assert_idle(engine)


def test_ends_in_the_middle_of_a_change(engine: Engine) -> None:
    """Cancelled while it is set back, changed twice at once, changed before its turn, changed after its end."""
    rng = random.Random(fresh_seed())
    request = make_request("r", random_prompt(rng, 300, 300), {"bone-positive": 0.7}, max_tokens=6, ignore_eos=True)
    plan = make_request("", [], {}).plan
    later, last = replace(request, plan=plan), replace(request, plan=make_request("", [], {"bone-positive": 1.2}).plan)
    collector = Collector()
    engine.submit(request, collector)
    early = steer(engine, [later])
    drain(engine, lambda: len(collector.outputs.get("r", [])) == 2)
    assert early.result() == [0] and collector.outputs["r"][0].began is later.plan
    steer(engine, [later]).cancel()  # nobody waits for it
    told = [steer(engine, [later]), steer(engine, [last])]
    engine.step()  # a part of the prefill
    engine.step()
    assert [future.result()[0] for future in told] == [2, 2]
    drain(engine, lambda: len(collector.outputs["r"]) == 3)
    assert collector.outputs["r"][2].began is last.plan
    steer(engine, [replace(request, plan=make_request("", [], {"bone-positive": 0.3}).plan)])
    engine.step()
    assert engine.stats().running == 1 and len(collector.outputs["r"]) == 3, "in the middle of the prefill"
    engine.cancel("r")
    drain(engine)
    gone = steer(engine, [later])
    engine.step()
    assert gone.result() == [None] and len(collector.outputs["r"]) == 3
    assert_idle(engine)


def test_a_change_that_cannot_run_is_refused_and_the_answer_goes_on(world: World) -> None:
    rng = random.Random(fresh_seed())
    small = build(world.family, max_lanes=2)
    prompts = world.prompts(rng)
    preference = {"positive": 0.7, "simple": 0.3}
    request = world.request("r", {"method": "rewarded_soup", "preference": preference}, prompts)
    wide = world.request("r", {"method": "mage", "value": "implicit", "preference": preference}, prompts)
    blocks = world.request("r", {"method": "cd", "preference": preference, "block_length": 4}, prompts)
    expected = serve(small, [request])["r"]
    collector = Collector()
    small.submit(request, collector)
    small.step()
    with pytest.raises(InputError, match="3 sources"):
        steer(small, [wide])
    with pytest.raises(InputError, match="block_length"):
        steer(small, [blocks])
    drain(small)
    assert collector.tokens("r") == [output.token for output in expected]
    scheduled = replace(request, plan=replace(request.plan, schedule=(ScheduledPlan(3, wide.plan),)))
    with pytest.raises(InputError, match=r"steering\.schedule\.1: '3 sources'"):
        small.submit(replace(scheduled, views=wide.views), collector)
    assert_idle(small)


def test_under_memory_pressure(world: World) -> None:
    """Changes and preemptions at once: every part is what it is with room."""
    rng = random.Random(fresh_seed())
    tight = build(world.family, kv_memory=14 * 16 * 2 * 2 * 2 * 8 * 4)
    plans = [make_request("", [], {"bone-positive": rng.uniform(-0.5, 1.5)}).plan for _ in range(3)]
    requests = []
    for index in range(6):
        request = make_request(
            f"r{index}", random_prompt(rng, 3, 40), {}, max_tokens=40, ignore_eos=True, seed=rng.getrandbits(60)
        )
        schedule = tuple(ScheduledPlan(start, rng.choice(plans)) for start in sorted(rng.sample(range(1, 39), 3)))
        requests.append(replace(request, plan=replace(request.plan, schedule=schedule)))
    roomy = build(world.family)
    outputs = serve(tight, requests, rng)
    assert tight.stats().preemptions > 0
    for request in requests:
        assert _check_parts(roomy, request, outputs[request.request_id]) == [p.start for p in request.plan.schedule]


@pytest.mark.parametrize("schedule", ["eager", "lazy"])
def test_routed_parts(tmp_path: Path, schedule: str) -> None:
    """Experts that had missed something, and how long the last one stayed, are of the plan before."""
    rng = random.Random(seed := fresh_seed())
    family = load_family(write_routed_family(tmp_path, seed=seed % 1000, defer=True))
    engine = build(family, max_lanes=100, expert_schedule=schedule)
    untraced = [{key: value for key, value in one.items() if key != "trace"} for one in routings(rng)]
    requests = []
    for index in range(4):
        first, second, third = rng.sample([*untraced, {"method": "base"}], 3)
        parts = [{"until": rng.randint(1, 4), **first}, {"until": rng.randint(5, 9), **second}, third]
        requests.append(routed(family, f"r{index}", {"schedule": parts}, random_prompt(rng, 1, 40), seed=index))
    outputs = serve(engine, requests, rng)
    for request in requests:
        starts = _check_parts(engine, request, outputs[request.request_id])
        assert starts == [part.start for part in request.plan.schedule]
