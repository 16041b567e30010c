"""Budgets for thoughts: free tokens are those of a request without one, forced ones are the message and the tag."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from guided_requests import ROOMY, World
from routed_folder import write_routed_family
from routed_requests import request as routed
from seeds import continued_seed, fresh_seed
from tiny_engine import Collector, assert_idle, build, drain, make_request, random_prompt, serve

from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarSpec
from ladle.server.engine.live_steering import steer
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.thinking import Thinking

METHODS = ("base", "bone_soup", "mage", "mod", "cfg", "args", "cd", "custom")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), random.Random(fresh_seed()), pblora=False)


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    return build(world.family, **ROOMY)


def _tokens(outputs: Sequence[StepOutput]) -> list[int]:
    assert outputs[-1].error is None, outputs[-1].error
    return [output.token for output in outputs]


def _find(tokens: Sequence[int], tag: Sequence[int]) -> int | None:
    places = range(len(tokens) - len(tag) + 1)
    return next((place for place in places if tuple(tokens[place : place + len(tag)]) == tuple(tag)), None)


def _think(rng: random.Random, request: GenerationRequest, plain: Sequence[int]) -> GenerationRequest:
    """``request`` with tags that its answer, ``plain``, may hold, and a budget."""
    opened = rng.random() < 0.4
    opening = tuple(random_prompt(rng, 1, 2)) if opened else tuple(plain[: rng.randint(1, 2)])
    place = rng.randint(2, len(plain) - 2)
    closing = random_prompt(rng, 1, 3) if rng.random() < 0.5 else tuple(plain[place : place + rng.randint(1, 2)])
    budget = rng.choice([0, 1, rng.randint(2, 8), len(plain), None])
    thinking = Thinking(opening, closing, budget, random_prompt(rng, 1, 3) if rng.random() < 0.6 else (), opened)
    return replace(request, request_id=f"{request.request_id}+", thinking=thinking)


def _cut(request: GenerationRequest, plain: Sequence[int]) -> list[int] | None:
    """Thought and forced tokens of an answer that would be ``plain``; None where nothing is forced."""
    thinking = request.thinking
    assert thinking is not None
    start = 0 if thinking.opened else len(thinking.open)
    if thinking.budget is None or (not thinking.opened and tuple(plain[:start]) != thinking.open):
        return None
    kept = list(plain[start : start + thinking.budget])
    if len(kept) < thinking.budget or _find(kept, thinking.close) is not None:
        return None
    sizes = range(len(thinking.close) - 1, 0, -1)
    begun = next((size for size in sizes if tuple(kept[-size:]) == thinking.close[:size]), 0)
    rest = thinking.close[begun:] if begun else (*thinking.message, *thinking.close)
    return [*plain[:start], *kept, *rest]


def _check(engine: Engine, asked: Sequence[GenerationRequest], found: dict[str, list[StepOutput]]) -> int:
    """Every request against two without a budget: one before the cut, one that goes on behind it. Returns how many were
    cut."""
    plain = serve(engine, [replace(request, thinking=None) for request in asked])
    fresh = {}
    for request in asked:
        said = _cut(request, _tokens(plain[request.request_id]))
        if said is None:
            ours, theirs = found[request.request_id], plain[request.request_id]
            assert _tokens(ours) == _tokens(theirs)
            assert [o.logprob for o in ours] == pytest.approx([o.logprob for o in theirs], abs=1e-4)
            assert ours[-1].finish_reason == theirs[-1].finish_reason
            continue
        left = request.sampling.max_tokens - len(said)
        assert _tokens(found[request.request_id])[: len(said)] == said[: request.sampling.max_tokens]
        if left > 0:
            seed = continued_seed(request.sampling.seed, len(said))
            fresh[request.request_id] = (
                said,
                replace(
                    request,
                    prompt=(*request.prompt, *said),
                    views={view: (*ids, *said) for view, ids in request.views.items()},
                    sampling=replace(request.sampling, max_tokens=left, seed=seed),
                    thinking=None,
                ),
            )
    after = serve(engine, [one for _, one in fresh.values()])
    for name, (said, _) in fresh.items():
        ours, theirs = found[name], after[name]
        assert _tokens(ours) == said + _tokens(theirs), name
        assert [o.logprob for o in ours[len(said) :]] == pytest.approx([o.logprob for o in theirs], abs=1e-4)
    return len(fresh)


def test_thoughts_under_every_kind_of_method(world: World, engine: Engine) -> None:
    """Merged, guided and valued, greedy and drawn, in one batch: tags in the prompt and in the answer, budgets of 0, of
    1, beyond the thought."""
    rng = random.Random(fresh_seed())
    requests = []
    for index, steering in enumerate(
        one for one in world.some_steerings(rng, 11, METHODS) if "block_length" not in one
    ):
        options = {"temperature": rng.choice([0.0, 1.0]), "seed": rng.getrandbits(60), "max_tokens": 16}
        requests.append(world.request(f"r{index}", steering, world.prompts(rng), **options))
    plain = serve(engine, requests)
    asked = [_think(rng, request, _tokens(plain[request.request_id])) for request in requests]
    assert _check(engine, asked, serve(engine, asked, rng)) > 0


def test_under_memory_pressure(world: World, engine: Engine) -> None:
    """What is preempted goes on where it was in its thought."""
    rng = random.Random(fresh_seed())
    tight = build(world.family, kv_memory=14 * 16 * 2 * 2 * 2 * 8 * 4)
    asked = []
    for index in range(6):
        prompt, seed = random_prompt(rng, 3, 40), rng.getrandbits(60)
        request = make_request(f"r{index}", prompt, {}, max_tokens=40, ignore_eos=True, seed=seed)
        thinking = Thinking((5,), random_prompt(rng, 1, 2), rng.randint(10, 30), random_prompt(rng, 1, 3), opened=True)
        asked.append(replace(request, thinking=thinking))
    found = serve(tight, asked, rng)
    assert tight.stats().preemptions > 0
    assert _check(engine, asked, found) > 0


def test_routed_thoughts(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = load_family(write_routed_family(tmp_path, seed=seed % 1000, defer=True))
    engine = build(family, max_lanes=100, expert_schedule=rng.choice(["eager", "lazy"]))
    route = {"method": "fusion_route"}
    steerings: list[dict[str, Any]] = [route, {**route, "top_experts": 2}, {"method": "co_llm"}]
    thinking, asked = Thinking((5,), random_prompt(rng, 2, 2), 4, random_prompt(rng, 1, 3), opened=True), []
    for index, steering in enumerate(steerings):
        request = routed(family, f"r{index}", steering, random_prompt(rng, 1, 40), seed=index)
        asked.append(replace(request, thinking=thinking))
    _check(engine, asked, serve(engine, asked, rng))


def test_a_grammar_is_of_the_answer_alone(world: World, engine: Engine) -> None:
    """The thought is as free as without one, but that no text may end in it; a thought may be left out."""
    rng = random.Random(fresh_seed())
    compiler = GrammarCompiler(engine.tokenizer, engine.eos)
    grammar, (end, *_) = compiler.compile(GrammarSpec("regex", "(yes|no), [a-z]{3}")), sorted(engine.eos)
    valued = {"method": "args", "preference": {"positive": 0.7, "simple": 0.3}}
    free = world.request("free", valued, world.prompts(rng), max_tokens=40, ignore_eos=False)
    biased = make_request("ends", random_prompt(rng, 5, 9), max_tokens=40, logit_bias=((end, 100.0),))
    opens = make_request("opens", random_prompt(rng, 5, 9), max_tokens=40, logit_bias=((7, 100.0),))
    closed = make_request("none", random_prompt(rng, 5, 9), max_tokens=40, logit_bias=((end, 100.0), (7, -100.0)))
    closing = (8, 9)
    inside = Thinking((7,), closing, 5, (11, 12), opened=True)
    asked = [
        replace(free, thinking=inside),
        replace(biased, thinking=inside),
        replace(opens, thinking=replace(inside, opened=False)),
        replace(closed, thinking=Thinking((7, 6), closing, 5)),
    ]
    # Nothing may end here either: what is ruled out is no candidate of explicit values, and another one is.
    plain = _tokens(serve(engine, [replace(free, sampling=replace(free.sampling, min_tokens=5))])["free"])
    try:
        found = serve(engine, [replace(request, grammar=grammar) for request in asked], rng)
    finally:
        compiler.close()
    for name, before in (("free", 9), ("ends", 9), ("opens", 10), ("none", 0)):
        tokens = _tokens(found[name])
        assert tokens[:before][-4:] == [11, 12, 8, 9][:before], (name, tokens)
        assert not engine.eos & set(tokens[:-1])
        answer = engine.tokenizer.decode(tokens[before:], skip_special_tokens=True)
        assert answer[:4] in ("yes,", "no, ") and found[name][-1].finish_reason == "stop", (name, answer)
        assert "".join(output.text for output in found[name]) == answer
    assert _tokens(found["free"])[:5] == plain[:5]
    assert _tokens(found["opens"])[:6] == [7] * 6


def test_cancelled_steered_and_ended_within_a_thought(world: World, engine: Engine) -> None:
    rng = random.Random(fresh_seed())
    thinking = Thinking((5,), (8, 9), 12, (11,), opened=True)
    request = make_request("r", random_prompt(rng, 5, 40), max_tokens=24, ignore_eos=True, seed=3)
    request, collector = replace(request, thinking=thinking), Collector()
    engine.submit(request, collector)
    drain(engine, lambda: len(collector.outputs.get("r", [])) >= 4)
    engine.cancel("r")
    drain(engine)
    assert_idle(engine)
    collector = Collector()
    engine.submit(request, collector)
    drain(engine, lambda: len(collector.outputs.get("r", [])) >= 4)
    other = make_request("r", request.prompt, {"bone-positive": 1.0})
    steer(engine, [replace(request, plan=other.plan)])
    drain(engine)
    assert collector.tokens("r")[12:15] == [11, 8, 9] and len(collector.tokens("r")) == 24
    assert [output.reasoning is None for output in collector.outputs["r"]] == [False] * 15 + [True] * 9
    assert collector.outputs["r"][-1].reasoning_tokens == 13
    # The end of a text ends it in a thought too, where no form of the answer is asked for; stop tokens do not.
    (end, *_) = sorted(engine.eos)
    ended = make_request("e", request.prompt, max_tokens=24, logit_bias=((end, 100.0),))
    stops = make_request("s", request.prompt, max_tokens=24, logit_bias=((20, 100.0),), stop_token_ids=frozenset({20}))
    found = serve(engine, [replace(one, thinking=thinking) for one in (ended, stops)])
    assert len(found["e"]) == 1 and found["e"][0].finish_reason == "stop"
    assert _tokens(found["s"]) == [20] * 12 + [11, 8, 9, 20] and found["s"][-1].finish_reason == "stop"


def test_blocks_and_ranks_with_thoughts(world: World, engine: Engine) -> None:
    """Several sequences that make one answer keep to the budget together."""
    rng = random.Random(fresh_seed())
    thinking = Thinking((5,), (8, 9), 5, (11,), opened=True)
    preference = {"positive": 0.7, "simple": 0.3}
    blocks = {"method": "cd", "preference": preference, "block_length": 3, "candidates": 2}
    ranked = {"method": "bone_soup", "preference": preference, "rank": {"by": "explicit"}}
    search = {"by": rng.choice(["explicit", "implicit", "likelihood"]), "until": 2, "draws": 3, "beam": 2}
    sure = {"by": "likelihood", "until": 3, "draws": {"entropy": [19.0, 20.0], "most": 3}}
    asked = [
        replace(world.request(f"r{index}", steering, world.prompts(rng), max_tokens=14), thinking=thinking)
        for index, steering in enumerate(
            [blocks, ranked, *({"method": "mod", "preference": preference, "search": one} for one in (search, sure))]
        )
    ]
    for outputs in serve(engine, asked).values():
        tokens = _tokens(outputs)
        assert tokens[5:8] == [11, 8, 9] and len(tokens) == 14
        assert [output.reasoning is None for output in outputs] == [False] * 8 + [True] * 6
        assert outputs[-1].reasoning_tokens == 6
