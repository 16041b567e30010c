"""Answers that are watched: what is said of each token against transformers and PEFT, where they end, what leaves."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_requests import World
from peft import PeftModel
from routed_folder import write_routed_family
from routed_requests import request as routed
from routed_requests import steerings as routings
from safetensors.torch import load_file
from seeds import fresh_seed
from tiny_engine import Collector, alone, assert_idle, build, drain, drain_preempting, random_prompt, serve
from transformers import AutoModelForCausalLM
from watched_folder import MONITOR, add_monitors
from watched_text import bound, ends_at

from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.live_steering import steer
from ladle.server.engine.requests.request import StepOutput
from ladle.server.live_answers import cost_of, token_cost

PREFERENCE = {"positive": 0.7, "simple": 0.3}
NEVER = 1e9
VALUE = "score-positive"
STEERINGS: list[dict[str, Any]] = [
    {"method": "base"},
    {"method": "bone_soup"},
    {"method": "mage", "value": "explicit", "candidates": 5},
    {"method": "mod"},
    {"method": "cfg"},
    {"method": "args", "candidates": 4},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("watched"), random.Random(fresh_seed()))


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    return build(world.family, max_lanes=120, max_batch_tokens=96, kv_memory=16 << 20)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(fresh_seed())


class PlainValues:
    """V of every token of a whole text by transformers and PEFT, float32."""

    def __init__(self, root: Path, name: str) -> None:
        base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
        self._model = PeftModel.from_pretrained(base, str(root / "values" / name)).eval()
        head = load_file(root / "values" / name / "value_head.safetensors")
        self._weight, self._bias = head["weight"].reshape(-1), head.get("bias", torch.zeros(1))

    @torch.inference_mode()
    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        output = self._model(torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
        values = output.hidden_states[-1][0] @ self._weight + self._bias
        return [float(value) for value in values[len(prompt) :]]


@pytest.fixture(scope="module")
def plain_values(world: World) -> PlainValues:
    return PlainValues(world.root, VALUE)


def watched(value: str = VALUE, above: float = NEVER, **options: Any) -> dict[str, Any]:
    return {"monitor": {"value": value, "above": above, **options}}


def _requests(world: World, rng: random.Random, count: int, **sampling: Any) -> list[tuple[dict[str, Any], Any, Any]]:
    """(steering, prompts, sampling) of ``count`` requests."""
    made = []
    for index in range(count):
        steering = {**STEERINGS[index % len(STEERINGS)], "preference": PREFERENCE}
        drawn = {"max_tokens": rng.randint(1, 24), "seed": rng.getrandbits(60), "temperature": rng.choice([0.0, 1.0])}
        made.append((steering, world.prompts(rng, 40), {**drawn, **sampling}))
    return made


def _begun_stops(pieces: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """Stop strings that a text begins again and again, and never completes."""
    text = "".join(pieces) or "a"
    starts = [rng.randrange(len(text)) for _ in range(3)]
    return tuple(text[start : start + rng.randint(1, 9)] + "\x00" for start in starts)


def _said(output: StepOutput) -> Mapping[str, float]:
    assert output.trace is not None and output.trace.monitors is not None
    return output.trace.monitors


def test_what_is_said_equals_transformers_and_answers_stay_as_they_are(
    world: World, engine: Engine, plain_values: PlainValues, rng: random.Random
) -> None:
    drawn = _requests(world, rng, len(STEERINGS))
    plain = [world.request(f"r{i}", s, prompts, **options) for i, (s, prompts, options) in enumerate(drawn)]
    without = serve(engine, plain, rng)
    asked = [
        world.request(f"r{i}", {**s, **watched(hold=rng.randint(1, 9)), "trace": True}, prompts, **options)
        for i, (s, prompts, options) in enumerate(drawn)
    ]
    outputs = serve(engine, asked, rng)
    for index, (_, prompts, _) in enumerate(drawn):
        own, other = outputs[f"r{index}"], without[f"r{index}"]
        assert [(o.token, o.text, o.finish_reason) for o in own] == [(o.token, o.text, o.finish_reason) for o in other]
        expected = plain_values(prompts[None], [output.token for output in own])
        assert [_said(output)[VALUE] for output in own] == pytest.approx(expected, abs=1e-4)
    # Without a trace the very same outputs come, whatever is watched beside.
    bare = [
        world.request(f"r{i}", {**s, **watched()}, prompts, **options) for i, (s, prompts, options) in enumerate(drawn)
    ]
    for name, own in serve(engine, bare).items():
        assert [replace(o, queued_s=None, cached_tokens=0) for o in own] == [
            replace(o, queued_s=None, cached_tokens=0, logprob=p.logprob)
            for o, p in zip(without[name], own, strict=True)
        ]
        assert [o.logprob for o in own] == pytest.approx([o.logprob for o in without[name]], abs=1e-5)


@pytest.mark.parametrize("preempted", [False, True])
def test_answers_end_where_a_value_is_above_for_long_enough(
    world: World, engine: Engine, plain_values: PlainValues, rng: random.Random, preempted: bool
) -> None:
    """Also where sequences are preempted on the way, and computed anew."""
    drawn = _requests(world, rng, 2 * len(STEERINGS), ignore_eos=True)
    without = serve(engine, [world.request(f"r{i}", s, p, **o) for i, (s, p, o) in enumerate(drawn)])
    requests, shorter, expected = [], [], {}
    for index, (steering, prompts, options) in enumerate(drawn):
        tokens = [output.token for output in without[f"r{index}"]]
        values = plain_values(prompts[None], tokens)
        above = bound(values, rng)
        run, hold = rng.randint(1, 3), rng.randint(1, 6)
        monitor = watched(above=above, hold=hold, **{"for": run})
        options["stop"] = _begun_stops([output.token_text for output in without[f"r{index}"]], rng)
        requests.append(world.request(f"r{index}", {**steering, **monitor}, prompts, **options))
        end = ends_at(values, above, run, hold)
        expected[f"r{index}"] = (end, values)
        shorter.append(world.request(f"r{index}", steering, prompts, **{**options, "max_tokens": max(1, end[1])}))
    cut = serve(engine, shorter)
    collector, before = Collector(), engine.stats().preemptions
    for request in requests:
        engine.submit(request, collector)
    if preempted:
        drain_preempting(engine, rng)
    else:
        drain(engine)
    engine.check_idle()
    assert (engine.stats().preemptions > before) == preempted
    outputs = collector.outputs
    for name, (end, values) in expected.items():
        own = outputs[name]
        judged, shown = end
        if judged is None:
            assert [o.token for o in own] == [o.token for o in without[name]] and own[-1].tripped is None
            continue
        last = own.pop()
        assert last.finish_reason == "content_filter" and last.token == -1 and last.text == ""
        assert last.tripped is not None and last.tripped.token == judged and last.completion_tokens == shown
        assert last.tripped.value == pytest.approx(values[judged - 1], abs=1e-4)
        assert [o.token for o in own] == [o.token for o in without[name][:shown]]
        # What a stop string or half a character held back is there, as where max_tokens ends an answer.
        assert "".join(o.text for o in own) == ("".join(o.text for o in cut[name]) if shown else "")
        assert all(o.finish_reason is None and not o.watched for o in own)


def test_tokens_wait_until_nothing_can_take_them_back(world: World, engine: Engine, rng: random.Random) -> None:
    collector, hold, prompts = Collector(), rng.randint(1, 8), world.prompts(rng)
    free = alone(engine, world.request("held", {"method": "base"}, prompts, max_tokens=20, seed=1))
    request = world.request("held", {"method": "base", **watched(hold=hold)}, prompts, max_tokens=20, seed=1)
    engine.submit(request, collector)
    drawn = 0
    while not collector.finished("held"):
        engine.step()
        entry = engine.tracker.entries.get("held")
        drawn = len(entry[0].output) if entry is not None else 20 * bool(drawn)
        seen = len(collector.outputs.get("held", ()))
        if seen < 20:  # what is said of a token comes with the next one
            assert seen <= max(0, drawn - hold)
            # A token whose text cannot be shown yet waits for the one that completes it.
            assert all(not output.token_text for output in free[seen : max(0, drawn - hold)])
    drain(engine)
    assert_idle(engine)


def test_other_models_full_weights_and_several_values_watch_as_well(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng, "llama", kind=rng.choice(["singles", "rows"]))
    engine = build(world.family, dtype="float64", max_lanes=40)
    manifest = [entry for entry in world.reference.manifest["values"] if entry["kind"] == "explicit"]
    for entry in manifest:
        prompts = world.prompts(rng)
        steering = {"method": "bone_soup", "preference": PREFERENCE, "trace": True, **watched(entry["name"])}
        output = alone(engine, world.request("r", steering, prompts, max_tokens=9, seed=3))
        view = ("system", entry["system"]) if "system" in entry else None
        tokens = [o.token for o in output]
        _, hidden = world.reference.weights.run(
            entry.get("base", ""), {entry["name"]: 1.0}, [[*prompts[view], *tokens]]
        )
        weight, bias = world.reference.weights.heads[entry["name"]]
        expected = (hidden[0, len(prompts[view]) :] @ weight + bias).tolist()
        assert [_said(o)[entry["name"]] for o in output] == pytest.approx(expected, abs=1e-9)


def test_a_live_change_does_not_shake_off_the_monitor(
    world: World, engine: Engine, plain_values: PlainValues, rng: random.Random
) -> None:
    prompts = world.prompts(rng)
    collector = Collector()
    steering = {"method": "base", "trace": True, **watched(hold=2)}
    request = world.request("live", steering, prompts, max_tokens=24, ignore_eos=True, seed=rng.getrandbits(40))
    other = world.request("live", {**steering, "method": "bone_soup", "preference": PREFERENCE}, prompts)
    engine.submit(request, collector)
    drain(engine, until=lambda: len(collector.outputs.get("live", ())) >= 6)
    future = steer(engine, [replace(request, plan=other.plan, views=other.views)])
    drain(engine)
    assert (future.result() or [0])[0] >= 6
    outputs = collector.outputs["live"]
    assert sum(o.began is not None for o in outputs) == 1 and len(outputs) == 24
    expected = plain_values(prompts[None], [o.token for o in outputs])
    assert [_said(o)[VALUE] for o in outputs] == pytest.approx(expected, abs=1e-4)
    # The same with a schedule, and an end after the change.
    parts = [{"until": 7, "method": "base"}, {"method": "bone_soup", "preference": PREFERENCE}]
    options = {"max_tokens": 24, "seed": 4, "ignore_eos": True}
    free = alone(engine, world.request("s", {"schedule": parts}, prompts, **options))
    values = plain_values(prompts[None], [o.token for o in free])
    above = bound(values[8:], rng)
    scheduled = {"schedule": parts, **watched(above=above, hold=3, **{"for": 2})}
    own = alone(engine, world.request("s", scheduled, prompts, **options))
    end = ends_at(values, above, 2, 3)
    assert len(own) == (24 if end[0] is None else end[1] + 1)
    assert own[-1].finish_reason == ("length" if end[0] is None else "content_filter")


def test_ranked_answers_that_ended_badly_have_scores_of_what_is_left(
    world: World, engine: Engine, plain_values: PlainValues, rng: random.Random
) -> None:
    prompts = world.prompts(rng)
    options = {"max_tokens": 16, "seed": rng.getrandbits(40), "ignore_eos": True}
    free = alone(engine, world.request("r", {"method": "base"}, prompts, **options))
    values = plain_values(prompts[None], [o.token for o in free])
    above = bound(sorted(values)[:9], rng)
    rank = {"rank": {"by": "explicit"}, "preference": PREFERENCE}
    own = alone(engine, world.request("r", {"method": "base", **rank, **watched(above=above)}, prompts, **options))
    end = ends_at(values, above, 1, 1)
    assert end[0] is not None and own[-1].finish_reason == "content_filter"
    assert own[-1].score is not None and len(own) == end[1] + 1
    engine.check_idle()


def test_cancelled_and_failed_ones_leave_nothing_behind(world: World, rng: random.Random) -> None:
    engine = build(world.family, max_lanes=60, kv_memory=1 << 19)
    collector = Collector()
    for index in range(6):
        steering = {**rng.choice(STEERINGS), "preference": PREFERENCE, **watched(hold=3)}
        if index % 2:
            steering["rank"] = {"by": "likelihood"}
        request = world.request(f"r{index}", steering, world.prompts(rng), max_tokens=rng.randint(1, 12), seed=index)
        engine.submit(request, collector)
    steps = rng.randint(1, 16)
    drain(engine, until=lambda: engine.stats().steps >= steps)
    gone = {f"r{index}" for index in range(4) if not collector.finished(f"r{index}")}
    for name in gone:
        engine.cancel(name)
    drain(engine)
    assert_idle(engine)
    engine.check_idle()
    for index in range(6):
        assert collector.finished(f"r{index}") == (f"r{index}" not in gone)
    # What says nothing that can be compared lets nothing pass.
    head = engine.family.heads[VALUE].weight
    kept = head.clone()
    head.fill_(math.nan)
    good = world.request("good", {"method": "base"}, world.prompts(rng))
    bad = world.request("bad", {"method": "base", **watched()}, world.prompts(rng))
    outputs = serve(engine, [good, bad])
    head.copy_(kept)
    assert outputs["bad"][-1].finish_reason == "error" and [o.token for o in outputs["bad"]] == [-1]
    assert outputs["good"][-1].finish_reason == "length"
    engine.check_idle()


def test_what_is_taken_back_and_what_is_asked_is_told_for_who_pays(world: World, engine: Engine) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "seed": 3}
    steering = {"method": "base", **watched(above=-NEVER, hold=512, **{"for": 9})}
    request = world.request("r", steering, {None: (5, 6)}, **options)
    (end,) = alone(engine, request)
    assert cost_of(end, token_cost(request.plan)) == 2 * 10, "of the base, and of the value that watches"
    assert end.finish_reason == "content_filter" and (end.completion_tokens, end.unseen, end.asked) == (0, 10, 0)
    # A question is read twice, for yes and for no; here once, because the only sentence ends with the answer.
    question = {"method": "base", "monitor": {"ask": "Bad?", "above": 0.999}}
    prompts = {None: (5, 6), ("question", "Bad?"): (7, 8, 9, 10, 11)}
    bias = ((70, 100.0), (71, 100.0))
    request = world.request("r", question, prompts, logit_bias=bias, **options)
    assert (token_cost(request.plan), request.prompt_cost) == (2, 4), "the base that is asked reads it all as well"
    output = alone(engine, request)
    assert len(output) == 20 and [o.asked for o in output if o.asked] == [8]
    assert sum(o.unseen for o in output) == 0


@pytest.mark.parametrize("broken", [0, 1])
def test_a_part_that_fails_ends_its_answer_and_nobody_elses(world: World, engine: Engine, broken: int) -> None:
    """Also where the other parts of the same answer are computed in the very step in which one of them fails."""
    names = ("score-positive", "score-simple")
    one, other = (world.request("bad", {"method": "base", **watched(name)}, {None: (5, 6)}) for name in names)
    plan = replace(one.plan, monitors=(*one.plan.monitors, *other.plan.monitors))
    bad = replace(one, plan=plan, sampling=replace(one.sampling, max_tokens=1))
    head = engine.family.heads[names[broken]].weight
    kept = head.clone()
    head.fill_(math.nan)
    outputs = serve(engine, [bad, world.request("good", {"method": "base"}, {None: (7,)})])
    head.copy_(kept)
    assert [(o.token, o.finish_reason) for o in outputs["bad"]] == [(-1, "error")]
    assert outputs["good"][-1].finish_reason == "length"
    engine.check_idle()


@pytest.mark.parametrize("expert_schedule", ["auto", "lazy"])
def test_routed_answers_are_watched(tmp_path: Path, rng: random.Random, expert_schedule: str) -> None:
    seed = rng.randrange(1000)
    root = add_monitors(write_routed_family(tmp_path, seed=seed, full=rng.choice([["json"], []]), defer=True), seed)
    family = load_family(root)
    engine = build(family, max_lanes=60, expert_schedule=expert_schedule, max_batch_tokens=64)
    said = PlainValues(root, MONITOR)
    drawn = [(s, random_prompt(rng, 1, 60), {"seed": rng.getrandbits(40)}) for s in routings(rng)]
    without = serve(engine, [routed(family, f"r{i}", s, prompt, **o) for i, (s, prompt, o) in enumerate(drawn)])
    requests, expected = [], {}
    for index, (steering, prompt, options) in enumerate(drawn):
        values = said(prompt, [o.token for o in without[f"r{index}"]])
        chances = [1 / (1 + math.exp(-value)) for value in values]
        above = max(0.0, bound(chances, rng))
        monitor = watched(MONITOR, above=above, hold=3, **{"for": 2})
        requests.append(routed(family, f"r{index}", {**steering, **monitor}, prompt, **options))
        expected[f"r{index}"] = ends_at(chances, above, 2, 3)
    for name, own in serve(engine, requests, rng).items():
        judged, shown = expected[name]
        assert [o.token for o in own if o.token >= 0] == [o.token for o in without[name][:shown]]
        assert [o.expert for o in own if o.token >= 0] == [o.expert for o in without[name][:shown]]
        assert (own[-1].tripped is None) == (judged is None)
    engine.check_idle()
